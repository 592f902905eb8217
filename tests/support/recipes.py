"""Small recipes for tests."""

from typing import Any

from factory.config.recipe import Recipe, make_recipe


def tiny_recipe(folder: object, **extra: Any) -> Recipe:
    """Four samples of VOC classes in two shards, drawn by the model in `folder` in two steps."""
    generator = {"model": str(folder), "steps": 2} | extra.pop("generator", {})
    return make_recipe({"n": 4, "classes": "voc", "shard_size": 2, "generator": generator, **extra})
