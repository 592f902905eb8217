"""A shard is a pure function of the plan; rejected samples are retried within it."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.encode import EncodedSample
from factory.dataset.masks import decode_label_png, decode_rle
from factory.dataset.receipts import Receipt, committed, missing, read_receipt
from factory.dataset.repair import repair
from factory.dataset.state import init_or_resume
from factory.dataset.storage import Store
from factory.dataset.tar import pack
from factory.dataset.verify import verify
from factory.generation.components import load_components
from factory.generation.shard import Produced, produce
from factory.generation.shard_job import ContentProducer


def run(recipe: Recipe, number: int = 0, threads: int = 1) -> tuple[list[EncodedSample], Produced]:
    with ThreadPoolExecutor(threads) as encoder:
        produced = produce(Plan(recipe).shard(number), recipe, load_components(recipe), encoder)
        return [future.result() for future in produced.samples], produced


def test_shard_bytes_do_not_depend_on_the_number_of_writers(tiny_recipe: Recipe) -> None:
    assert pack(run(tiny_recipe, 1, threads=1)[0]) == pack(run(tiny_recipe, 1, threads=3)[0])


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
    recipe = make_recipe(tiny_data | {"filters": {"min_area": 0.999}, "attempts": 2})
    samples, produced = run(recipe)
    assert samples == []
    assert produced.tally.exhausted == (0, 1, 2, 3)
    assert (produced.tally.attempts, sum(produced.tally.rejected.values())) == (8, 8)


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
    first, second = (ContentProducer(tiny_recipe, Store(str(tmp_path)), "cpu") for _ in range(2))
    made = first.finish(0, first.generate(0, lambda accepted, reasons: None))
    proof = (tmp_path / "receipts/000000.json").read_bytes()

    def reached(*arguments: object) -> None:
        raise AssertionError("the generator was asked")

    second._components.generator.generate = reached  # type: ignore[method-assign,assignment]
    content = second.generate(0, lambda accepted, reasons: None)
    assert isinstance(content, Receipt)
    assert content == read_receipt(Store(str(tmp_path)), 0)
    assert second.finish(0, content) == made
    assert (tmp_path / "receipts/000000.json").read_bytes() == proof
    for nothing in (b"half a rec", proof.replace(content.plan.encode(), b"0" * 64)):
        (tmp_path / "receipts/000000.json").write_bytes(nothing)
        with pytest.raises(AssertionError, match="the generator was asked"):
            second.generate(0, lambda accepted, reasons: None)


def test_a_shard_of_the_first_format_is_made_again_to_the_same_bytes(tiny_data: dict[str, Any], tmp_path: Path) -> None:
    """Filters of that format measure other masks than today's, so a repair must go by the dataset's own format."""
    store = Store(str(tmp_path))
    recipe = init_or_resume(store, make_recipe({**tiny_data, "format": 1}))
    producer = ContentProducer(recipe, store, "cpu")

    def make_what_is_missing() -> dict[str, bytes]:
        for number in missing(Plan(recipe), committed(store)):
            producer.finish(number, producer.generate(number, lambda accepted, reasons: None))
        names = [name for folder in ("train", "manifest") for name in store.list(folder)]
        return {name: store.get(name) or b"" for name in names}

    before = make_what_is_missing()
    assert len(before) == 6
    (tmp_path / "receipts/000001.json").unlink()
    (tmp_path / "train/000002.tar").unlink()
    os.truncate(tmp_path / "train/000001.tar", 3000)
    report = verify(store)
    assert list(report.damaged) == [2]
    assert set(report.orphans) == {"train/000001.tar", "manifest/000001.parquet"}
    assert repair(store, report).deleted == (2,)
    assert make_what_is_missing() == before
    assert verify(store).samples == 12
