"""Objects inside other objects: filters judge what is written."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.manifest import rejections
from factory.dataset.receipts import commit, read_receipt
from factory.dataset.records import Grounded, Image, Instance
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
    """Generates noise images from their seeds, with a latent."""

    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        generators = [np.random.default_rng(request.seed) for request in requests]
        latent = np.zeros((4, 2, 2), np.float16)
        return [Generated(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), latent=latent) for rng in generators]


class Nested:
    """Detects a dog and a cat in every image. In two of three, the cat is inside the dog, which has a higher score."""

    def detect(self, images: Sequence[Image], classes: object = None) -> list[list[Instance]]:
        return [self._detect_image(image) for image in images]

    def _detect_image(self, image: Image) -> list[Instance]:
        dog, cat = np.zeros((2, 64, 64), bool)
        dog[8:40, 8:40] = True
        left = 10 if image[0, 0, 0] % 3 else 44
        cat[12:24, left : left + 12] = True
        return [Instance("dog", 0.9, dog), Instance("cat", 0.8, cat)]


class Touching(Nested):
    """The cat covers the edge of the dog: 72 of 1,096 pixels belong to both."""

    def _detect_image(self, image: Image) -> list[Instance]:
        dog, cat = super()._detect_image(image)
        cat.mask[:] = False
        cat.mask[12:24, 34:46] = True
        return [dog, cat]


def make_dataset(folder: Path, detector: Nested | None = None, **options: Any) -> tuple[Store, Recipe]:
    recipe = make_recipe(
        {
            "n": 8,
            "classes": ["dog", "cat", "bus"],
            "prompts": [{"text": "a dog and a cat", "classes": {"dog": "dog", "cat": "cat"}}],
            "shard_size": 8,
            "masks": {"source": "detector"},
        }
        | options
    )
    grounder: Any = OracleGrounder if recipe.oracle else DetectorGrounder
    components = Components(Noise(), grounder(detector or Nested(), recipe.masks))
    store, planned = Store(str(folder)), Plan(recipe).shard(0)
    store.create("recipe.yaml", recipe.to_yaml().encode())
    with ThreadPoolExecutor(1) as encoder:
        produced = produce(planned, recipe, components, encoder)
        samples = [job.result() for job in produced.samples]
    commit(store, planned, samples, produced.tally, recipe.fingerprint(), ABOUT)
    return store, recipe


def records_of(store: Store) -> list[dict[str, Any]]:
    return [json.loads(sample.members["json"]) for sample in unpack(store.get("train/000000.tar") or b"")]


def test_disjoint_masks_keep_their_order_and_equal_scores_favour_the_first() -> None:
    """Annotations have this order, so another one changes the bytes of a dataset."""
    row, ignore = np.ones((1, 6), bool), np.zeros((1, 6), bool)
    found = [Instance("dog", 0.7, row.copy()), Instance("cat", 0.7, row.copy()), Instance("bus", 0.9, row.copy())]
    found[0].mask[0, 4:] = False
    found[2].mask[0, 1:] = False
    disjoint = Grounded(tuple(found), ignore).disjoint()
    masks = {instance.class_name: instance.mask[0].tolist() for instance in disjoint.instances}
    assert list(masks) == ["dog", "cat", "bus"]
    assert [np.flatnonzero(mask).tolist() for mask in masks.values()] == [[1, 2, 3], [4, 5], [0]]
    assert disjoint.ignore is ignore


def test_covered_object_rejects_the_sample(tmp_path: Path) -> None:
    store, _ = make_dataset(tmp_path)
    assert verify(store).damaged == {}
    records = records_of(store)
    assert len(records) == 8
    for record in records:
        assert {annotation["category_name"] for annotation in record["annotations"]} == {"dog", "cat"}
    reasons = [reason for record in records for reason in rejections(record, 3)]
    assert set(reasons) == {"mask_empty"}


def test_overlaps_are_measured_before_they_are_removed(tmp_path: Path) -> None:
    for limit, accepted in ((0.07, 8), (0.06, 0)):
        store, _ = make_dataset(tmp_path / str(limit), Touching(), filters={"max_overlap": limit})
        receipt = read_receipt(store, 0)
        assert receipt is not None
        assert (receipt.accepted, set(receipt.rejected)) == (accepted, set() if accepted else {"overlap"})


def test_oracle_omits_covered_objects(tmp_path: Path) -> None:
    store, _ = make_dataset(tmp_path, **ORACLE)
    assert verify(store).damaged == {}
    found = [{item["category_name"] for item in record["annotations"]} for record in records_of(store)]
    assert {"dog"} in found
    assert {"dog", "cat"} in found


def test_filter_areas_match_the_written_masks(tmp_path: Path) -> None:
    store, _ = make_dataset(tmp_path, **ORACLE)
    for record in records_of(store):
        areas = [annotation["area"] / 64**2 for annotation in record["annotations"]]
        assert record["filters"]["area_smallest"] == round(min(areas), 5)
        assert record["filters"]["area_largest"] == round(max(areas), 5)
