"""The dataset card (README.md): contents, provenance and usage of a dataset."""

from pathlib import PurePath
from typing import Any

import yaml

from factory.config.guidance import CONSTANT
from factory.config.recipe import Recipe
from factory.dataset.hf_features import shard_features
from factory.dataset.totals import Totals
from factory.errors import counted, tally

_READ = """```python
{imports}
import webdataset as wds
from PIL import Image

for sample in wds.WebDataset({shards}, shardshuffle=False):
    image, label = (Image.open(io.BytesIO(sample[name])) for name in ("jpg", "seg.png"))
    record = json.loads(sample["json"])
    print(image.size, label.getextrema(), [annotation["category_name"] for annotation in record["annotations"]])
```"""
"""Opened this way, a label image keeps its palette; webdataset's "pil" decoder converts labels to colours."""


def card(recipe: Recipe, sums: Totals, last_shard: int) -> str:
    """The card as Markdown with a YAML header; a function of the recipe and the committed shards."""
    title, summary, limitations = _text_for_real(recipe) if recipe.real else _text_for_generated(recipe)
    header = yaml.safe_dump(_header(recipe, sums), sort_keys=False, allow_unicode=True, width=110)
    table = "\n".join(f"| {name} | {as_text(value)} |" for name, value in _facts(recipe, sums).items())
    classes = recipe.vocabulary().classes
    split = (
        f"This is training data for a grounder: split {recipe.oracle.split}; prompts only name its "
        f"{len(recipe.oracle.seen)} seen classes. `latent.npy` is the latent from which features are read.\n\n"
        if recipe.oracle
        else ""
    )
    condition = ", and the same images and labels" if recipe.real else ""
    return f"""---
{header}---
# {counted(sums.accepted, title.replace("images", "image", 1), title)}

{summary}

| | |
|---|---|
{table}

{split}`factory generate --recipe recipe.yaml --shards DIR` reproduces the same bytes, given the same library versions
and kind of processor{condition}.

## Usage

{_usage(sums, last_shard)}

`load_dataset(DIR)` of Hugging Face `datasets` reads the same files.
`seg.png` is a palette PNG: 0 is background, 255 is ignored, other values are category ids. `json` contains COCO
annotations (compressed RLE, boxes as left, top, width, height), the prompt, the seed and the filter scores.
`manifest/*.parquet` has one row per sample.

## Classes

{as_text(", ".join(f"{entry.id} {entry.name}" for entry in classes))}

## Limitations

{limitations}
"""


def _usage(sums: Totals, last_shard: int) -> str:
    """Code that reads the shards. webdataset fails at a missing one, so an incomplete dataset is read by its files."""
    if sums.shards == last_shard + 1:
        return _READ.format(imports="import io, json", shards=f'"train/{{000000..{last_shard:06d}}}.tar"')
    return _READ.format(imports="import glob, io, json", shards='sorted(glob.glob("train/*.tar"))')


def _header(recipe: Recipe, sums: Totals) -> dict[str, Any]:
    """The YAML header. It gives column types and the paths of the shards, because the manifest is parquet too."""
    return {
        "task_categories": ["image-segmentation"],
        "tags": [*([] if recipe.real else ["synthetic"]), "webdataset"],
        "size_categories": [_size(sums.accepted)],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train/*.tar"}]}],
        "dataset_info": {"features": shard_features(recipe)},
    }


def _text_for_generated(recipe: Recipe) -> tuple[str, str, str]:
    """(title, summary, limitations) of a dataset of generated images."""
    source = "custom prompts" if recipe.prompts else "class names"
    sources = {"detector": "a detector", "attention": "the model's own attention"}
    masks = sources.get(recipe.masks.source, "a trained grounder")
    return (
        "generated images with masks",
        f"Generated from {source}: the images by a text-to-image model, the masks by {masks}.\n"
        "No image is a photograph, and no image was labelled by a human.",
        "The images show how the text-to-image model depicts a class name; the masks show what was found in them.\n"
        "Evaluate both before you rely on a model trained on them. The licence terms of the text-to-image model\n"
        "apply to its outputs.",
    )


def _text_for_real(recipe: Recipe) -> tuple[str, str, str]:
    """(title, summary, limitations) of a dataset created by `factory invert`."""
    assert recipe.real is not None
    kind = f"PASCAL VOC format, image set {recipe.real.image_set}" if recipe.real.dataset == "voc" else "COCO format"
    method = "DDIM inversion" if recipe.real.method == "ddim" else "adding noise"
    return (
        "real images with their labels",
        f"Images of a labelled folder ({kind}), scaled to the size of a text-to-image model, with the folder's own\n"
        f"labels as masks. No image was generated and no mask was found by a model. The model only provided the\n"
        f"latents, by {method}.",
        "The licence and privacy terms of the source folder apply. Its labels may contain errors.",
    )


def _facts(recipe: Recipe, sums: Totals) -> dict[str, str]:
    """The table of the card: every model used, with its revision."""
    generator, masks, real = recipe.generator, recipe.masks, recipe.real
    model = f"{generator.model}, revision {generator.revision}"
    facts = {"samples": f"{sums.accepted} of {recipe.n}, in {sums.shards} shards, {sums.bytes / 1e6:.1f} MB"}
    if real is not None:
        facts["images and masks"] = f"{len(real.keys)} of {PurePath(real.root).name}, labels {real.labels_digest[:12]}"
        facts["text-to-image model (latents only)"] = model
        facts["inversion"] = f"{real.method}, {real.steps} steps" if real.method == "ddim" else real.method
    else:
        facts["text-to-image model"] = model
        schedule = "" if generator.guidance_schedule == CONSTANT else f" ({generator.guidance_schedule})"
        solver = "solver of the model" if generator.solver == "model" else generator.solver
        facts["sampling"] = f"{solver}, {generator.steps} steps, guidance {generator.guidance:g}{schedule}"
        facts["masks"] = masks.source + (f", revision {masks.grounder_revision}" if masks.grounder_revision else "")
        if recipe.uses_detector():
            facts["detector"] = f"{masks.detector}, revision {masks.detector_revision}"
    facts["rejected attempts"] = tally(sums.rejected) or "none"
    facts["recipe"] = f"`recipe.yaml`, fingerprint {recipe.fingerprint()}"
    return facts


def as_text(value: str) -> str:
    """A value that may be a name given by others, as text in Markdown, also in the cell of a table."""
    return " ".join(value.split()).replace("|", "\\|").replace("<", "&lt;")


def _size(samples: int) -> str:
    limits = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for limit, name in limits if samples < limit), "n>1M")
