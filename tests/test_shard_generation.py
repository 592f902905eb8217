"""A shard is a pure function of the plan; rejected samples are retried within it."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.encode import EncodedSample
from factory.dataset.masks import decode_label_png, decode_rle
from factory.dataset.receipts import Receipt, Tally, commit, read_receipt
from factory.dataset.records import Instance
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import init_or_resume
from factory.dataset.tar import pack
from factory.dataset.verify import verify
from factory.errors import UserError
from factory.generation.components import Components, load_components
from factory.generation.run import generate
from factory.generation.shard import Produced, produce
from factory.generation.shard_job import ShardProducer
from tests.support.in_process import invoke
from tests.support.older_formats import older_sample

ABOUT: dict[str, Any] = {"seconds": {}, "versions": {}, "worker": {}}


def run(
    recipe: Recipe, number: int = 0, threads: int = 1, components: Components | None = None
) -> tuple[list[EncodedSample], Produced]:
    with ThreadPoolExecutor(threads) as encoder:
        produced = produce(Plan(recipe).shard(number), recipe, components or load_components(recipe), encoder)
        return [future.result() for future in produced.samples], produced


def test_shard_bytes_do_not_depend_on_the_number_of_writers(tiny_recipe: Recipe) -> None:
    assert pack(run(tiny_recipe, 1, threads=1)[0]) == pack(run(tiny_recipe, 1, threads=3)[0])


def test_shard_bytes_do_not_depend_on_the_shards_that_the_worker_generated_before(tiny_data: dict[str, Any]) -> None:
    """The near-duplicate filter compares the images of one shard only: workers get different shards in every run."""
    recipe = make_recipe(tiny_data | {"filters": {"min_area": None, "duplicate_distance": 20}})
    made = [run(recipe, number) for number in range(3)]
    assert any(produced.tally.rejected["near_duplicate"] for _, produced in made), "the recipe must reject duplicates"
    components = load_components(recipe)
    for number in (2, 0, 1, 0):
        assert pack(run(recipe, number, components=components)[0]) == pack(made[number][0])


def test_rejected_samples_are_retried_with_the_seed_of_the_next_attempt(tiny_recipe: Recipe) -> None:
    annotations = [json.loads(s.members["json"]) for number in range(3) for s in run(tiny_recipe, number)[0]]
    retried = [item for item in annotations if item["attempt"] > 0]
    assert len(annotations) == 12
    assert retried, "the recipe must reject some samples"
    shard_samples = {s.index: s for number in range(3) for s in Plan(tiny_recipe).shard(number).samples}
    for item in annotations:
        planned = shard_samples[item["image"]["id"]]
        assert item["seed"] == planned.seed(tiny_recipe.seed, item["attempt"])
        assert [tried["seed"] for tried in item["attempts"]] == [planned.seed(0, k) for k in range(item["attempt"] + 1)]
        assert item["attempts"][-1] == {"attempt": item["attempt"], "seed": item["seed"], "outcome": "accepted"}
        assert all(tried["outcome"] != "accepted" for tried in item["attempts"][:-1])


def test_exhausted_samples_are_left_out_and_counted(tiny_data: dict[str, Any]) -> None:
    recipe = make_recipe(tiny_data | {"filters": {"min_area": 0.999, "max_area": 1}, "attempts": 2})
    reported = list[tuple[int, int]]()

    def progress(accepted: int, reasons: list[str]) -> None:
        reported.append((accepted, len(reasons)))

    with ThreadPoolExecutor(1) as encoder:
        produced = produce(Plan(recipe).shard(0), recipe, load_components(recipe), encoder, progress)
    assert produced.samples == []
    assert reported == [(0, 3), (0, 1)] * 2, "after each micro-batch"
    assert produced.tally.exhausted == (0, 1, 2, 3)
    assert (produced.tally.attempts, sum(produced.tally.rejected.values())) == (8, 8)


@pytest.mark.parametrize(("score", "counts"), [(0.49, False), (0.5, True)])
def test_masks_are_compared_with_confident_detections_only(
    tiny_data: dict[str, Any], score: float, counts: bool
) -> None:
    """A detector that sees a cat with 6 % where the mask of the cat is does not confirm the mask."""

    class Unsure:
        def detect(self, images: Any, classes: Any = None) -> list[list[Instance]]:
            whole = np.ones(images[0].shape[:2], bool)
            return [[Instance(name, score, whole) for name in names] for names in classes]

    recipe = make_recipe(tiny_data | {"filters": {"min_detector_iou": 0.0, "max_area": None}})
    components = load_components(recipe, detector=Unsure())
    with ThreadPoolExecutor(1) as encoder:
        produced = produce(Plan(recipe).shard(0), recipe, components, encoder)
        samples = [json.loads(future.result().members["json"]) for future in produced.samples]
    assert samples
    assert all((sample["filters"]["detector_iou"] > 0) is counts for sample in samples)


def test_labels_run_lengths_and_areas_of_a_sample_agree(tiny_recipe: Recipe) -> None:
    for sample in run(tiny_recipe)[0]:
        annotation_file, labels = json.loads(sample.members["json"]), decode_label_png(sample.members["seg.png"])
        assert list(sample.members) == ["jpg", "json", "seg.png"]
        for annotation in annotation_file["annotations"]:
            mask = decode_rle(annotation["segmentation"])
            assert (labels[mask] == annotation["category_id"]).all()
            assert annotation["area"] == mask.sum()
        assert np.isin(labels, [0, 255, *(a["category_id"] for a in annotation_file["annotations"])]).all()


def test_a_shard_that_another_driver_finished_is_not_made_again(tiny_recipe: Recipe, tmp_path: Path) -> None:
    """Two drivers on one dataset, as after `--force`: a worker of the second one looks for a receipt first."""
    first, second = (ShardProducer(tiny_recipe, Store(str(tmp_path)), "cpu") for _ in range(2))
    made = first.finish(0, first.generate(0, lambda accepted, reasons: None))
    proof = (tmp_path / "receipts/000000.json").read_bytes()

    def reached(*arguments: object) -> None:
        raise AssertionError("the generator was asked")

    second._components.generator.generate = reached
    content = second.generate(0, lambda accepted, reasons: None)
    assert isinstance(content, Receipt)
    assert content == read_receipt(Store(str(tmp_path)), 0)
    assert second.finish(0, content) == made
    assert (tmp_path / "receipts/000000.json").read_bytes() == proof
    for nothing in (b"half a rec", proof.replace(content.plan.encode(), b"0" * 64)):
        (tmp_path / "receipts/000000.json").write_bytes(nothing)
        with pytest.raises(AssertionError, match="the generator was asked"):
            second.generate(0, lambda accepted, reasons: None)


def test_shards_of_earlier_formats_are_read_but_not_generated(tiny_data: dict[str, Any], tmp_path: Path) -> None:
    """Their images and masks were sampled in another way. A repair must refuse before it deletes anything."""
    older = tiny_data | {"format": 2, "masks": {"capture": "sampling", "timesteps": [100]}}
    with pytest.raises(UserError, match="has format 2; this version"):
        generate(make_recipe(older), Store(str(tmp_path / "new")))
    assert not list((tmp_path / "new").glob("*"))
    store = Store(str(tmp_path / "set"))
    recipe = init_or_resume(store, make_recipe(older))
    for number in range(3):
        planned = Plan(recipe).shard(number)
        samples = [older_sample(sample, recipe) for sample in run(make_recipe(tiny_data), number)[0]]
        commit(store, planned, samples, Tally(4, Counter(), ()), recipe.fingerprint(), ABOUT)
    assert generate(recipe, store).totals.accepted == 12
    assert verify(store).sound
    for change, message in (({"seed": 1}, "seed: 0 -> 1"), ({"n": 8}, "n: 12 -> 8")):
        with pytest.raises(UserError, match=f"was created with a different recipe: {message}"):
            generate(make_recipe(tiny_data | change), store)
    with pytest.raises(UserError, match="has format 2; this version"):
        generate(recipe.model_copy(update={"n": 16}), store, extend=True)
    (tmp_path / "set/receipts/000001.json").unlink()
    with pytest.raises(UserError, match="can still be read, verified, exported and used for training"):
        generate(recipe, store)
    result = invoke("verify", store.address, "--repair")
    assert isinstance(result.exception, UserError)
    assert (tmp_path / "set/train/000001.tar").exists()
