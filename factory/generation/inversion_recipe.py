"""The recipe of a set of real images: which images, with which prompts, of which labels."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.config.recipe import Recipe, make_recipe
from factory.config.vocabulary import caption, parse_classes
from factory.errors import UserError

if TYPE_CHECKING:
    from factory.dataset.storage import Store

_NO_FILTER = dict.fromkeys(
    (
        "min_area", "max_area", "max_border", "min_confidence", "max_overlap", "min_detector_iou",
        "duplicate_distance", "min_contrast",
    )
)  # fmt: skip
"""True labels are not judged."""


@dataclass(frozen=True)
class RealOptions:
    """What to take of a folder and how to bring it to noise; see `factory invert --help`."""

    dataset: str
    root: Path
    image_set: str
    annotations: Path | None
    classes: str
    split: str
    most: int | None
    method: str
    steps: int
    timestep: int
    max_classes: int
    min_area: float


def recipe_of_folder(
    options: RealOptions,
    given: Mapping[str, Any],
    engine: Mapping[str, Any],
    report: Callable[[str], None] = lambda text: None,
) -> tuple[Recipe, int]:
    """(the recipe, how many images were left out). UserError where no image may be used.

    `report` hears what the folder holds that is not used.
    """
    from factory.config.sections import RealRecipe
    from factory.generator.inversion import open_folder, present

    if options.dataset == "voc" and options.annotations is not None:
        raise UserError("--annotations is COCO's file of instances; give it with --dataset coco, or leave it out.")
    vocabulary = parse_classes(options.classes)
    seen = vocabulary.names if options.split == "all" else vocabulary.seen(options.split)
    real = {
        "dataset": options.dataset,
        "root": str(options.root.absolute()),
        "image_set": options.image_set,
        "annotations": str(options.annotations.absolute()) if options.annotations else None,
        "method": options.method,
        "steps": options.steps,
    }
    folder = open_folder(RealRecipe(**real, keys=("",), labels_digest=""), vocabulary, checked=True)  # type: ignore[arg-type]
    for note in folder.notes:
        report(note)
    keys: list[str] = []
    prompts: list[dict[str, Any]] = []
    digest, left_out = hashlib.sha256(), 0
    for key in folder.keys:
        if options.most is not None and len(keys) == options.most:
            break
        labels = folder.load(key).labels
        named = present(labels, vocabulary, options.min_area)
        shown = present(labels, vocabulary, 0)
        if not named or len(named) > options.max_classes or not set(shown) <= set(seen):
            left_out += 1
            continue
        words = {name: vocabulary.resolve(name).display for name in named}
        keys.append(key)
        prompts.append({"text": caption(list(words.values())), "classes": words})
        digest.update(key.encode() + labels.tobytes())
    if not keys:
        raise UserError(
            f"no image of {options.root} may be used: {left_out} have no class of split {options.split} alone, none of "
            f"at least {options.min_area:g} of the image, or more than {options.max_classes}."
        )
    data: dict[str, Any] = {
        "n": len(keys),
        "classes": options.classes if options.classes in ("voc", "coco") else list(vocabulary.names),
        "prompts": prompts,
        "attempts": 1,
        "masks": {"source": "labels", "capture": "sampling", "timesteps": [options.timestep]},
        "filters": _NO_FILTER,
        "oracle": {"split": options.split, "seen": list(seen)},
        "real": real | {"keys": keys, "labels_digest": digest.hexdigest()},
        "engine": {name: value for name, value in engine.items() if value is not None},
    }
    data |= {name: value for name, value in given.items() if value is not None and name != "model"}
    if given.get("model") is not None:
        data["generator"] = {**data.get("generator", {}), "model": given["model"], "revision": None}
    return make_recipe(data), left_out


def mean_psnr(store: "Store", recipe: Recipe) -> float:
    """The mean of the samples' PSNR, in dB, from the manifests; NaN where there is none."""
    from factory.config.plan import Plan
    from factory.dataset.manifest import read_manifest
    from factory.dataset.receipts import committed, manifest_name

    values = []
    for number in sorted(committed(store)):
        data = store.get(manifest_name(number)) if number < len(Plan(recipe)) else None
        rows = read_manifest(data) if data is not None else []
        values += [dict(row["filters"])["psnr"] for row in rows]
    return sum(values) / len(values) if values else float("nan")
