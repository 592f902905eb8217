"""Builds the recipe of a dataset of inverted real images: which images, with which prompts and labels."""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from factory.config.class_option import classes_field, parse_classes
from factory.config.recipe import Recipe, make_recipe
from factory.config.sections import FilterRecipe, RealRecipe
from factory.config.splits import seen_classes, split_name
from factory.config.vocabulary import Vocabulary, caption
from factory.errors import UserError
from factory.generator.load import model_folder
from factory.generator.real_images import open_folder, present

if TYPE_CHECKING:
    from factory.labelled.interface import LabelledFolder

_NO_FILTER = dict.fromkeys(FilterRecipe.model_fields)
"""True labels are not filtered."""


@dataclass(frozen=True)
class RealOptions:
    """The images of a folder to use and how to invert them; see `factory invert --help`. None selects the default."""

    dataset: str
    root: Path
    image_set: str | None
    annotations: Path | None
    classes: str
    split: str
    max_images: int | None
    method: str
    steps: int | None
    noise_level: float | None
    max_classes: int
    min_area: float


def recipe_of_folder(
    options: RealOptions,
    overrides: Mapping[str, Any],
    engine: Mapping[str, Any],
    report: Callable[[str], None] = lambda text: None,
) -> tuple[Recipe, int]:
    """(the recipe, number of skipped images). UserError if no image can be used.

    `report` receives notes about ignored content of the folder.
    """
    _check_used(options)
    vocabulary = parse_classes(options.classes)
    seen = vocabulary.names if options.split == "all" else seen_classes(vocabulary, options.split)
    real: dict[str, Any] = {
        "dataset": options.dataset,
        "root": str(options.root.absolute()),
        "annotations": str(options.annotations.absolute()) if options.annotations else None,
        "method": options.method,
    }
    real |= {} if options.image_set is None else {"image_set": options.image_set}
    real |= {} if options.steps is None else {"steps": options.steps}
    # First everything else, because reading the labels of a large folder takes minutes.
    data: dict[str, Any] = {
        "classes": classes_field(options.classes),
        "engine": {name: value for name, value in engine.items() if value is not None},
    }
    data |= {name: value for name, value in overrides.items() if value is not None and name != "model"}
    if overrides.get("model") is not None:
        data["generator"] = {**data.get("generator", {}), "model": overrides["model"], "revision": None}
    settings = make_recipe(data | {"n": 1, "masks": {"noise_level": options.noise_level}})
    model_folder(settings.generator.model)
    folder = open_folder(RealRecipe(**real, keys=("",), labels_digest=""), vocabulary, checked=True)
    for note in folder.notes:
        report(note)
    keys, prompts, labels_digest, skipped = _usable_images(folder, options, vocabulary, seen)
    data |= {
        "n": len(keys),
        "prompts": prompts,
        "attempts": 1,
        "masks": {"source": "labels", "noise_level": options.noise_level},
        "filters": _NO_FILTER,
        "oracle": {"split": split_name(options.split), "seen": list(seen)},
        "real": real | {"keys": keys, "labels_digest": labels_digest},
    }
    return make_recipe(data), skipped


def _check_used(options: RealOptions) -> None:
    """UserError for an option that has no effect because of another option."""
    if options.dataset == "voc" and options.annotations is not None:
        raise UserError("--annotations names COCO's instances file; give it with --layout coco, or omit it.")
    if options.dataset == "coco" and options.image_set is not None:
        raise UserError(
            f"--real-set {options.image_set} has no effect with --layout coco, whose images are those of "
            f"--annotations; leave it out."
        )
    if options.method == "noise" and options.steps is not None:
        raise UserError(
            f"--inversion-steps {options.steps} has no effect with --method noise, which adds noise in one step; leave "
            f"it out, or use --method ddim."
        )


def _usable_images(
    folder: "LabelledFolder", options: RealOptions, vocabulary: Vocabulary, seen: Collection[str]
) -> tuple[list[str], list[dict[str, Any]], str, int]:
    """(keys and prompts of the images that the options allow, digest of their labels, number of skipped images)."""
    keys: list[str] = []
    prompts: list[dict[str, Any]] = []
    digest, skipped = _LabelsDigest(), 0
    for key in folder.keys:
        if options.max_images is not None and len(keys) == options.max_images:
            break
        labels = folder.load(key).labels
        large_enough = present(labels, vocabulary, options.min_area)
        # A class that is too small for the prompt, or has no pixel of its own, still disqualifies the image if unseen.
        shown = {*present(labels, vocabulary, 0), *(vocabulary.names[k - 1] for k in folder.listed_labels(key))}
        if not large_enough or len(large_enough) > options.max_classes or not shown <= set(seen):
            skipped += 1
            continue
        phrases = {name: vocabulary.resolve(name).display for name in large_enough}
        keys.append(key)
        prompts.append({"text": caption(list(phrases.values())), "classes": phrases})
        digest.add(key, labels)
    if not keys:
        raise UserError(
            f"no image of {options.root} can be used: {skipped} contain classes outside split {options.split}, no "
            f"class that covers at least {options.min_area:g} of the image, or more than {options.max_classes} classes."
        )
    return keys, prompts, digest.text(), skipped


def check_labels(recipe: Recipe) -> None:
    """UserError if a recipe's labelled images are missing, or if their labels are not those that it pins.

    Reads every image, so it takes as long as building the recipe did.
    """
    real = recipe.real
    assert real is not None
    folder, digest = open_folder(real, recipe.vocabulary()), _LabelsDigest()
    absent = set(real.keys) - set(folder.keys)
    if absent:
        raise UserError(
            f"{real.root} has no image {min(absent)}, which the recipe names; restore it, or start a new dataset with "
            f"`factory invert`."
        )
    for key in real.keys:
        digest.add(key, folder.load(key).labels)
    if digest.text() != real.labels_digest:
        raise UserError(
            f"the recipe pins the labels of {real.root} as {real.labels_digest[:12]}, but they are now "
            f"{digest.text()[:12]}; restore the pinned ones, or start a new dataset with `factory invert`."
        )


class _LabelsDigest:
    """The digest of labelled images in a recipe: their keys and labels, in order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, key: str, labels: NDArray[np.uint8]) -> None:
        self._digest.update(key.encode() + labels.tobytes())

    def text(self) -> str:
        return self._digest.hexdigest()
