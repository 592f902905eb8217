"""Which settings of two recipes differ, for messages."""

import json
from os.path import normpath
from typing import Any

from factory.config.recipe import Recipe

_PATHS = {
    "generator": ("model", "lora"),
    "masks": ("source", "detector"),
    "real": ("root", "annotations"),
}
"""Fields that may be paths, absolute ones in a pinned recipe. Names of models are in normal form."""


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Each field of `content()` that differs, such as "generator.steps: 20 -> 30".

    Fields without an effect in either recipe are left out: earlier versions stored options that are now rejected, and
    their datasets must be resumable without them. Spelling does not matter: of paths, such as `../model` from two
    working directories (revisions compare their contents), of classes, and of prompts with or without phrases.
    """
    unused = _without_effect(old) & _without_effect(new)
    before, after = (_without(_in_normal_form(recipe), unused) for recipe in (old, new))
    return _differences(before, after, "")


def _without_effect(recipe: Recipe) -> set[tuple[str, ...]]:
    """Fields of `content()` that do not change the samples of a recipe; options for them are rejected."""
    unused: set[tuple[str, ...]] = set()
    if not recipe.uses_detector():
        unused |= {("masks", "detector"), ("masks", "detector_revision")}
    if recipe.prompts is not None:
        unused.add(("objects",))
    if recipe.generator.guidance <= 1:
        unused.add(("generator", "guidance_schedule"))
    if recipe.real is not None:
        unused.add(("real", "annotations" if recipe.real.dataset == "voc" else "image_set"))
        if recipe.real.method == "noise":
            unused.add(("real", "steps"))
    return unused


def _without(data: dict[str, Any], fields: set[tuple[str, ...]]) -> dict[str, Any]:
    """Data of a recipe without some fields of it or of its sections."""
    for *section, name in fields:
        part = data[section[0]] if section else data
        part.pop(name, None)
    return data


def _in_normal_form(recipe: Recipe) -> dict[str, Any]:
    data = recipe.content()
    if isinstance(recipe.classes, tuple):  # options contain the official names, files and programs any spelling
        data["classes"] = list(recipe.vocabulary().names)
    prompts = recipe.user_prompts()
    if prompts is not None:
        data["prompts"] = [{"text": p.text, "classes": list(zip(p.classes, p.phrases, strict=True))} for p in prompts]
    for section, names in _PATHS.items():
        fields = data.get(section, {})
        fields |= {name: normpath(fields[name]) for name in names if fields.get(name) is not None}
    return data


def changed_sizes(old: Recipe, new: Recipe) -> list[str]:
    """The earlier sizes, if a recipe has others than its dataset has or would have after an extension to `n`.

    They are not in `content()`, but they determine the shards. A recipe may lack the latest ones, because it is older
    than an extension or was written by hand.
    """
    sizes = (*old.earlier, old.n) if new.n > old.n else old.earlier
    same = new.n < old.n or new.earlier == sizes[: len(new.earlier)]
    return [] if same else [f"earlier: {abbreviated(sizes)} -> {abbreviated(new.earlier)}"]


def _differences(old: Any, new: Any, name: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line for key in keys for line in _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [f"{name}: {abbreviated(old)} -> {abbreviated(new)}"]


def abbreviated(value: object) -> str:
    """A value as in JSON and YAML, for messages."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
