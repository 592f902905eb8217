"""The README of a set: what it is, how it was made, how to read it."""

from typing import TYPE_CHECKING

from factory.recipe import Recipe

if TYPE_CHECKING:
    from factory.dataset import Totals

_READ = """```python
import io, json
import webdataset as wds
from PIL import Image

for sample in wds.WebDataset("train/{{000000..{last:06d}}}.tar", shardshuffle=False):
    image, label = (Image.open(io.BytesIO(sample[name])) for name in ("jpg", "seg.png"))
    about = json.loads(sample["json"])
    print(image.size, label.getextrema(), [row["category_name"] for row in about["annotations"]])
```"""
"""A picture opened this way keeps its palette; webdataset's own "pil" decoder turns labels into colours."""


def card(recipe: Recipe, sums: "Totals", last_shard: int) -> str:
    """Markdown with the header that dataset hubs read; a function of the recipe and of what was committed."""
    classes = recipe.vocabulary().classes
    generator, masks = recipe.generator, recipe.masks
    rejected = ", ".join(f"{reason} {count}" for reason, count in sums.rejected.items()) or "none"
    kind = "oracle set: training data of a grounder" if recipe.oracle else "set of images with masks"
    oracle = (
        f"Split {recipe.oracle.split}; prompts name the {len(recipe.oracle.seen)} seen classes only.\n\n"
        if recipe.oracle
        else ""
    )
    return f"""---
task_categories:
- image-segmentation
tags:
- synthetic
- webdataset
size_categories:
- {_size(sums.accepted)}
---
# {sums.accepted} generated images with masks

A {kind}, made from class names by a text-to-image model. No image was taken and none was labelled by a person.

| | |
|---|---|
| samples | {sums.accepted} of {recipe.n}, in {sums.shards} shards, {sums.bytes / 1e6:.1f} MB |
| text-to-image model | {generator.model}, revision {generator.revision} |
| sampling | {generator.solver}, {generator.steps} steps, guidance {generator.guidance:g} |
| masks | {masks.source} |
| rejected attempts | {rejected} |
| recipe | `recipe.yaml`, fingerprint {recipe.fingerprint()} |

{oracle}`factory generate --recipe recipe.yaml --shards DIR` makes the same bytes again on the same kind of device.

## Read

{_READ.format(last=last_shard)}

`seg.png` is a palette picture: 0 background, 255 to be ignored, else the category's id. `json` holds COCO annotations
(official ids, run lengths, boxes as x, y, width, height), the prompt, the seed and what the filters measured.
`manifest/*.parquet` has a row for each sample.

## Classes

{", ".join(f"{entry.id} {entry.name}" for entry in classes)}

## Limits

The images show what the text-to-image model makes of a class name, and the masks what was found in them: measure both
before you trust a model that was trained on them. The licence is that of what the text-to-image model may be used for.
"""


def _size(samples: int) -> str:
    limits = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for limit, name in limits if samples < limit), "n>1M")
