"""A rendered VOC folder, and recipes that invert its images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factory.config.recipe import Recipe
from factory.config.vocabulary import voc
from factory.generation.inversion_recipe import RealOptions, recipe_of_folder
from factory.generation.pin import pin_recipe
from factory.stickers.voc_folder import write_voc_folder


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("voc") / "rendered"
    write_voc_folder(root, voc(), 20, ("noto",), size=96)
    return root


def real_options(folder: Path, **changes: Any) -> RealOptions:
    steps = None if changes.get("method") == "noise" else 4
    plain = RealOptions("voc", folder, None, None, "voc", "1", 6, "ddim", steps, 0.37, 3, 0.01)
    return replace(plain, **changes)


def inverting_recipe(folder: Path, model: Path, **changes: Any) -> Recipe:
    given = {"model": str(model), "shard_size": 3, "batch": 2}
    return pin_recipe(recipe_of_folder(real_options(folder, **changes), given, {})[0])
