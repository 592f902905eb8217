"""Small recipes for tests."""

from typing import Any

from factory.config.recipe import Recipe, make_recipe


def two_shards(folder: object, **extra: Any) -> Recipe:
    """Four samples of VOC classes in two shards, drawn by the model in `folder` in two steps."""
    generator = {"model": str(folder), "steps": 2} | extra.pop("generator", {})
    return make_recipe({"n": 4, "classes": "voc", "shard_size": 2, "generator": generator, **extra})


def three_shards(folder: object, min_area: float) -> dict[str, Any]:
    """The data of a recipe: 12 samples in three shards, some of which a filter with `min_area` rejects at first."""
    return {
        "n": 12,
        "classes": "voc",
        "objects": {1: 0.5, 2: 0.5},
        "shard_size": 4,
        "batch": 3,
        "generator": {"model": str(folder), "steps": 2, "solver": "ddim", "dtype": "float32"},
        "masks": {"noise_level": 0.5},
        "filters": {"min_area": min_area, "duplicate_distance": None},
    }
