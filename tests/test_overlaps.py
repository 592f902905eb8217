"""Objects that lie within others: what is accepted is what is written, in datasets of both formats."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.manifest import rejections
from factory.dataset.receipts import commit
from factory.dataset.records import Image, Instance
from factory.dataset.storage import Store
from factory.dataset.tar import unpack
from factory.dataset.verify import verify
from factory.detector.interface import DetectorGrounder
from factory.detector.oracle import OracleGrounder
from factory.generation.components import Components
from factory.generation.shard import produce
from factory.generator.interface import Generated, Request

ABOUT: dict[str, Any] = {"seconds": {}, "versions": {}, "worker": {}}
ORACLE = {"oracle": {"split": "all", "seen": ["dog", "cat", "bus"]}}


class Noise:
    """Images that are noise of their seed, with a latent."""

    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        dice = [np.random.default_rng(request.seed) for request in requests]
        latent = np.zeros((4, 2, 2), np.float16)
        return [Generated(die.integers(0, 256, (64, 64, 3), dtype=np.uint8), latent=latent) for die in dice]


class Nested:
    """Finds a dog and a cat in every image: in two of three the cat lies within the dog, who is surer."""

    def detect(self, images: Sequence[Image]) -> list[list[Instance]]:
        return [self._of(image) for image in images]

    def _of(self, image: Image) -> list[Instance]:
        dog, cat = np.zeros((2, 64, 64), bool)
        dog[8:40, 8:40] = True
        left = 10 if image[0, 0, 0] % 3 else 44
        cat[12:24, left : left + 12] = True
        return [Instance("dog", 0.9, dog), Instance("cat", 0.8, cat)]


def make(folder: Path, **more: Any) -> tuple[Store, Recipe]:
    recipe = make_recipe(
        {
            "n": 8,
            "classes": ["dog", "cat", "bus"],
            "prompts": [{"text": "a dog and a cat", "classes": {"dog": "dog", "cat": "cat"}}],
            "shard_size": 8,
            "masks": {"source": "detector"},
        }
        | more
    )
    grounder: Any = OracleGrounder if recipe.oracle else DetectorGrounder
    parts = Components(Noise(), grounder(Nested(), recipe.masks))
    store, planned = Store(str(folder)), Plan(recipe).shard(0)
    store.create("recipe.yaml", recipe.to_yaml().encode())
    with ThreadPoolExecutor(1) as encoder:
        produced = produce(planned, recipe, parts, encoder)
        samples = [job.result() for job in produced.samples]
    commit(store, planned, samples, produced.tally, recipe.fingerprint(), ABOUT)
    return store, recipe


def rows_of(store: Store) -> list[dict[str, Any]]:
    return [json.loads(sample.members["json"]) for sample in unpack(store.get("train/000000.tar") or b"")]


@pytest.mark.parametrize("format", [1, 2])
def test_an_object_that_another_one_covers_is_a_rejection_and_no_damaged_sample(tmp_path: Path, format: int) -> None:
    store, _ = make(tmp_path, format=format)
    assert verify(store).damaged == {}
    rows = rows_of(store)
    assert len(rows) == 8
    assert all({one["category_name"] for one in row["annotations"]} == {"dog", "cat"} for row in rows)
    reasons = [reason for row in rows for reason in rejections(row, format)]
    assert set(reasons) == {"mask_empty"}


@pytest.mark.parametrize("format", [1, 2])
def test_an_oracle_leaves_out_what_another_object_covers(tmp_path: Path, format: int) -> None:
    store, _ = make(tmp_path, format=format, **ORACLE)
    assert verify(store).damaged == {}
    found = [{one["category_name"] for one in row["annotations"]} for row in rows_of(store)]
    assert {"dog"} in found
    assert {"dog", "cat"} in found


def test_areas_are_those_of_the_masks_that_are_written(tmp_path: Path) -> None:
    store, _ = make(tmp_path, **ORACLE)
    for row in rows_of(store):
        areas = [one["area"] / 64**2 for one in row["annotations"]]
        assert row["filters"]["area_smallest"] == round(min(areas), 5)
        assert row["filters"]["area_largest"] == round(max(areas), 5)
