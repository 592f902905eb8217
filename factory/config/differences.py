"""Which settings of two recipes differ, for messages."""

import json
from typing import Any

from factory.config.recipe import Recipe


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Each field of `content()` that differs, such as "generator.steps: 20 -> 30"."""
    return _differences(old.content(), new.content(), "")


def _differences(old: Any, new: Any, name: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line for key in keys for line in _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [f"{name}: {_abbreviated(old)} -> {_abbreviated(new)}"]


def _abbreviated(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
