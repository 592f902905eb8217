"""Tiny pipelines of all families, and recipes, prompts and requests for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factory.config.prompts import Prompt
from factory.config.recipe import Recipe, make_recipe
from factory.generation.pin import pin_recipe
from factory.generator.interface import Request
from tests.support.tiny_families import BUILDERS, SIDES, tiny_family

Make = Callable[[str], Path]

PROMPTS = [
    Prompt("a photograph of a dog and a train", ("dog", "train"), ("dog", "train")),
    Prompt("a photograph of a cat", ("cat",), ("cat",)),
]
REQUESTS = [Request(prompt, 5 + k) for k, prompt in enumerate(PROMPTS)]


def names_of_families(slow: set[str]) -> list[Any]:
    """Parameters of a test: every row of the table, of which those in `slow` are marked."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in ("sd", "sdxl", *BUILDERS)]


ALL = names_of_families(slow={"flux2-klein-base"})


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The folder of a tiny pipeline by name, written once."""
    folder, made = tmp_path_factory.mktemp("families"), {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tiny_family(name, folder / name)
        return made[name]

    return make


def recipe(model: Path, **changes: Any) -> Recipe:
    side = SIDES.get(model.name, 64)
    generator = {"model": str(model), "steps": 2, "width": side, "height": side} | changes.pop("generator", {})
    data = {"n": 4, "classes": "voc", "shard_size": 4, "batch": 2, "attempts": 1, "generator": generator}
    filters = dict.fromkeys(("min_area", "max_area", "max_border", "max_overlap", "duplicate_distance", "min_contrast"))
    return pin_recipe(make_recipe(data | {"masks": {"source": "attention"}, "filters": filters} | changes))
