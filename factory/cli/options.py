"""Builds a recipe from a recipe file and the given options, which override the file."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from factory.config.class_option import classes_field
from factory.config.object_counts import parse_objects
from factory.config.recipe import Recipe, load_recipe, make_recipe
from factory.config.vocabulary import Vocabulary
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.files.paths import expanded

_FIELDS = {
    "n": ("n",),
    "seed": ("seed",),
    "prompt_style": ("prompt_style",),
    "batch": ("batch",),
    "attempts": ("attempts",),
    "shard_size": ("shard_size",),
    "model": ("generator", "model"),
    "steps": ("generator", "steps"),
    "guidance": ("generator", "guidance"),
    "guidance_schedule": ("generator", "guidance_schedule"),
    "dtype": ("generator", "dtype"),
    "lora": ("generator", "lora"),
    "min_confidence": ("filters", "min_confidence"),
    "masks": ("masks", "source"),
    "detector": ("masks", "detector"),
    "noise_level": ("masks", "noise_level"),
    "workers": ("engine", "workers"),
    "gpus_per_worker": ("engine", "gpus_per_worker"),
    "address": ("engine", "address"),
    "grace": ("engine", "grace"),
    "detectors": ("engine", "detectors"),
    "gpus_per_detector": ("engine", "gpus_per_detector"),
}
"""The field of the recipe that each option sets."""
_REVISIONS = {
    "model": ("generator", "revision"),
    "lora": ("generator", "lora_revision"),
    "detector": ("masks", "detector_revision"),
    "masks": ("masks", "grounder_revision"),
}
"""The field with the pinned revision of a model, which each option resets."""


def assemble(
    file: Path | None, store: Store | None, options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe of a command: that of the file or of the dataset to resume, overridden by the options.

    An option that is None was not given; those that set no field are ignored. `defaults` are fields of the recipe that
    the command presets. UserError if the options are invalid together.
    """
    given = {name: value for name, value in options.items() if value is not None}
    data = {**(defaults or {}), **(load_recipe(file) if file else _existing(store, given))}
    for name, field in _FIELDS.items():
        if name in given:
            _set(data, field, given[name])
    for name, field in _REVISIONS.items():
        if name in given:
            _set(data, field, None)
    if "classes" in given:
        data["classes"] = classes_field(given["classes"])
    if "objects" in given:
        data["objects"] = parse_objects(given["objects"])
    if "cooccurrence" in given:
        data["cooccurrence"] = _cooccurrence(given["cooccurrence"], data)
    if "n" in given:
        data.pop("earlier", None)  # a dataset that is resumed or extended keeps its own
    without_n = "n" not in data
    if without_n:
        data["n"] = 1  # first the other fields: one of the file may be a misspelt `n`
    if "split" in given:
        data["oracle"] = _oracle(given["split"], data)
    if "prompts" in given:
        data["prompts"] = _prompts(given["prompts"], data)
        data["prompts_digest"] = hashlib.sha256(given["prompts"].read_bytes()).hexdigest()
    recipe = make_recipe(data, str(file or "the options"))
    if without_n:
        raise UserError("the number of samples is missing; give --n, as in --n 1000, or a --recipe that contains it.")
    _check_effects(recipe, given)
    return recipe


def _check_effects(recipe: Recipe, given: Mapping[str, Any]) -> None:
    """UserError for an option without effect, because the user expects it to change the dataset."""
    if "detector" in given and not recipe.uses_detector():
        raise UserError(
            f"--detector {given['detector']} would not be used, because the masks come from {recipe.masks.source}; "
            f"add --masks detector, set filters.min_detector_iou in the recipe, or leave --detector out."
        )
    if "gpus_per_detector" in given and not recipe.engine.detectors:
        raise UserError(
            f"--gpus-per-detector {given['gpus_per_detector']:g} has no effect without a pool of detectors; add "
            f"--detectors, or leave it out."
        )
    if "objects" in given and recipe.prompts is not None:
        raise UserError(
            "--objects has no effect on custom prompts, which come from --prompts or the recipe; leave one of them out."
        )


def open_store(address: str, file: Path | None) -> Store:
    """The store at an address, configured by the `store` section of a recipe file, or by the environment."""
    section = load_recipe(file).get("store") if file else None
    recipe = make_recipe({"n": 1, "store": section or {}}, str(file))
    return Store(address, recipe.store)


def _existing(store: Store | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of the dataset to resume, unless both classes and size are given.

    Fields that a handwritten recipe leaves out are left out, because their defaults depend on the model.
    """
    from factory.dataset.stored_recipe import RECIPE, fields_of

    specified = {"classes", "n"} <= given.keys()
    return {} if store is None or specified or store.get(RECIPE) is None else fields_of(store)


def _set(data: dict[str, Any], field: tuple[str, ...], value: Any) -> None:
    *parents, last = field
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):  # `make_recipe` rejects it, as it does without the option
            return
    data[last] = value


def _oracle(split: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The `oracle` section: the seen classes of a named split, or all classes that a file does not list as unseen."""
    from factory.config.splits import seen_classes, split_name

    return {"split": split_name(split), "seen": list(seen_classes(_vocabulary(data), split))}


def _cooccurrence(text: str, data: Mapping[str, Any]) -> Any:
    from factory.config.cooccurrence import read_table

    if text == "coco":
        return text
    path = expanded(text)
    if not path.is_file():
        raise UserError(
            f"there is no co-occurrence table {text!r}; give coco or a CSV file with rows class,class,weight."
        )
    return read_table(path, _vocabulary(data))


def _prompts(path: Path, data: Mapping[str, Any]) -> list[dict[str, Any]]:
    from factory.config.prompts import read_prompts

    prompts = read_prompts(path, _vocabulary(data))
    return [{"text": p.text, "classes": dict(zip(p.classes, p.phrases, strict=True))} for p in prompts]


def _vocabulary(data: Mapping[str, Any]) -> Vocabulary:
    return make_recipe({"n": 1, "classes": data.get("classes", "coco")}).vocabulary()
