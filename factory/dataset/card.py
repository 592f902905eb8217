"""The README of a dataset: what it is, how it was made, how to read it."""

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import yaml

from factory.config.recipe import Recipe
from factory.dataset.hf_features import shard_features

if TYPE_CHECKING:
    from factory.dataset.state import Totals

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
    title, summary, limits = _of_photographs(recipe) if recipe.real else _of_generated(recipe)
    head = yaml.safe_dump(_head(recipe, sums), sort_keys=False, allow_unicode=True, width=110)
    rows = "\n".join(f"| {name} | {value} |" for name, value in _facts(recipe, sums).items())
    classes = recipe.vocabulary().classes
    split = (
        f"It is training data of a grounder: split {recipe.oracle.split}, whose {len(recipe.oracle.seen)} seen classes "
        f"alone are named in prompts. `latent.npy` holds the latents of the features.\n\n"
        if recipe.oracle
        else ""
    )
    again = " and the same photographs and labels" if recipe.real else ""
    return f"""---
{head}---
# {sums.accepted} {title}

{summary}

| | |
|---|---|
{rows}

{split}`factory generate --recipe recipe.yaml --shards DIR` makes the same bytes again on the same kind of device, with
the same library versions{again}.

## Read

{_READ.format(last=last_shard)}

`load_dataset(DIR)` of Hugging Face `datasets` reads the same files.
`seg.png` is a palette picture: 0 background, 255 to be ignored, else the category's id. `json` holds COCO annotations
(official ids, run lengths, boxes as x, y, width, height), the prompt, the seed and what the filters measured.
`manifest/*.parquet` has a row for each sample.

## Classes

{", ".join(f"{entry.id} {entry.name}" for entry in classes)}

## Limits

{limits}
"""


def _head(recipe: Recipe, sums: "Totals") -> dict[str, Any]:
    """What dataset hubs read, with the columns' types and where the shards lie, for there is parquet beside them."""
    return {
        "task_categories": ["image-segmentation"],
        "tags": [*([] if recipe.real else ["synthetic"]), "webdataset"],
        "size_categories": [_size(sums.accepted)],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train/*.tar"}]}],
        "dataset_info": {"features": shard_features(recipe)},
    }


def _of_generated(recipe: Recipe) -> tuple[str, str, str]:
    """(title, what it is, what to beware of) of a dataset whose images were generated."""
    source = "prompts of its maker's own" if recipe.prompts else "class names"
    judge = {"detector": "a detector", "attention": "the model's own attention"}
    masks = judge.get(recipe.masks.source, "a trained grounder")
    return (
        "generated images with masks",
        f"Made from {source}: the images by a text-to-image model, the masks by {masks}.\n"
        "No image is a photograph, and none was labelled by a person.",
        "The images show what the text-to-image model makes of a class name, and the masks what was found in them:\n"
        "measure both before you trust a model that was trained on them. The licence is that of what the\n"
        "text-to-image model may be used for.",
    )


def _of_photographs(recipe: Recipe) -> tuple[str, str, str]:
    """The same of a dataset that `factory invert` made."""
    assert recipe.real is not None
    form = f"PASCAL VOC's form, image set {recipe.real.image_set}" if recipe.real.dataset == "voc" else "COCO's form"
    way = "DDIM inversion" if recipe.real.method == "ddim" else "adding noise"
    return (
        "real images with their labels",
        f"Images of a labelled folder ({form}), scaled to the size of a text-to-image model, with the folder's own\n"
        f"labels as masks. No image was generated and no mask was found by a model, which gave the latents alone, by\n"
        f"{way}.",
        "Licence and privacy are those of the folder that the images come from. The labels are the folder's, with\n"
        "their errors.",
    )


def _facts(recipe: Recipe, sums: "Totals") -> dict[str, str]:
    """The table of the card: every model that took part, with its revision."""
    generator, masks, real = recipe.generator, recipe.masks, recipe.real
    model = f"{generator.model}, revision {generator.revision}"
    rejected = ", ".join(f"{reason} {count}" for reason, count in sums.rejected.items()) or "none"
    facts = {"samples": f"{sums.accepted} of {recipe.n}, in {sums.shards} shards, {sums.bytes / 1e6:.1f} MB"}
    if real is not None:
        facts["images and masks"] = f"{len(real.keys)} of {PurePath(real.root).name}, labels {real.labels_digest[:12]}"
        facts["text-to-image model, for the latents"] = model
        facts["way to noise"] = f"{real.method}, {real.steps} steps" if real.method == "ddim" else real.method
    else:
        facts["text-to-image model"] = model
        facts["sampling"] = f"{generator.solver}, {generator.steps} steps, guidance {generator.guidance:g}"
        facts["masks"] = masks.source + (f", revision {masks.grounder_revision}" if masks.grounder_revision else "")
        if masks.source == "detector" or recipe.filters.min_detector_iou is not None:
            facts["detector"] = f"{masks.detector}, revision {masks.detector_revision}"
    facts["rejected attempts"] = rejected
    facts["recipe"] = f"`recipe.yaml`, fingerprint {recipe.fingerprint()}"
    return facts


def _size(samples: int) -> str:
    limits = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for limit, name in limits if samples < limit), "n>1M")
