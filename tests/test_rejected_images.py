"""Thumbnails of rejected attempts: bounded, deterministic, and no part of a shard."""

import base64
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.encode import encode_jpeg
from factory.dataset.receipts import read_receipt
from factory.dataset.rejected_images import MAX_PER_REASON, MAX_SIDE, parse_rejected, rejected_name
from factory.dataset.storage import Store
from factory.generation.components import load_components
from factory.generation.shard import produce
from factory.generation.shard_job import ShardProducer
from tests.support.bucket import Bucket, Fault


@pytest.fixture(scope="module")
def recipe(tiny_model: Path) -> Recipe:
    return make_recipe(
        {
            "n": 6,
            "classes": "voc",
            "shard_size": 6,
            "batch": 3,
            "attempts": 2,
            "generator": {"model": str(tiny_model), "steps": 2, "solver": "ddim", "dtype": "float32"},
            "masks": {"noise_level": 0.5},
            "filters": {"min_area": 0.999, "max_area": 1, "duplicate_distance": None},
        }
    )


@pytest.fixture(scope="module")
def files(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The file of one shard, produced twice."""
    found = []
    for _ in range(2):
        store = Store(str(tmp_path_factory.mktemp("set")))
        producer = ShardProducer(recipe, store, "cpu")
        producer.finish(0, producer.generate(0, lambda accepted, reasons: None))
        found.append(store.get(rejected_name(0)) or b"")
    return found


def test_a_shard_keeps_the_first_rejected_images_of_each_reason(recipe: Recipe, files: list[bytes]) -> None:
    assert files[0] == files[1]
    images = parse_rejected(files[0])
    with ThreadPoolExecutor(1) as encoder:
        tally = produce(Plan(recipe).shard(0), recipe, load_components(recipe), encoder).tally
    expected = {reason: min(count, MAX_PER_REASON) for reason, count in tally.rejected.items()}
    assert Counter(image.reason for image in images) == expected
    assert sum(tally.rejected.values()) > len(images) > 0
    first = images[0]
    planned = Plan(recipe).shard(0).samples[first.index]
    assert (first.seed, first.classes) == (planned.seed(recipe.seed, first.attempt), planned.prompt.classes)
    assert first.image.shape == (64, 64, 3)
    assert all(mask.shape == (64, 64) for _, _, mask in first.masks)


def test_a_shard_is_committed_although_its_rejected_images_cannot_be_saved(recipe: Recipe, bucket: Bucket) -> None:
    bucket.faults[:] = [Fault("status", "PUT .*/rejected/", times=None, code=403)]
    store = Store("s3://b/set")
    producer = ShardProducer(recipe, store, "cpu")
    producer.finish(0, producer.generate(0, lambda accepted, reasons: None))
    assert bucket.requests["PUT status"] == 1
    assert read_receipt(store, 0) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"jpeg": "not base64!"},
        {"jpeg": ""},
        {"objects": [{"category_name": "dog", "score": 1, "segmentation": {"size": [9, 9], "counts": "a1"}}]},
        {"objects": None},
        {"classes": 3},
    ],
)
def test_invalid_files_raise_value_error(files: list[bytes], change: dict[str, Any]) -> None:
    content = json.loads(files[0])
    content["images"][0] |= change
    with pytest.raises(ValueError):  # noqa: PT011 - several messages
        parse_rejected(json.dumps(content).encode())


def test_thumbnail_larger_than_the_limit_is_rejected(files: list[bytes]) -> None:
    content = json.loads(files[0])
    content["images"][0]["jpeg"] = base64.b64encode(encode_jpeg(np.zeros((8, MAX_SIDE + 1, 3), np.uint8), 90)).decode()
    with pytest.raises(ValueError, match="a thumbnail of 129 x 8"):
        parse_rejected(json.dumps(content).encode())
