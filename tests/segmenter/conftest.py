"""A rendered VOC folder and a small dataset, shared by the tests of segmenters."""

from pathlib import Path

import pytest

from factory.config.recipe import make_recipe
from factory.config.vocabulary import voc
from factory.stickers.voc_folder import write_voc_folder
from tests.support.datasets import make_dataset


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("voc") / "rendered"
    write_voc_folder(root, voc(), 30, ("noto",), size=64)
    return root


@pytest.fixture(scope="package")
def shards(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set") / "set"
    data = {
        "n": 10,
        "classes": "voc",
        "shard_size": 4,
        "generator": {"model": str(tiny_model), "steps": 2},
        "filters": {"min_area": None, "duplicate_distance": None},
    }
    make_dataset(make_recipe(data), root)
    return root
