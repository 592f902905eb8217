"""One shard is a pure function of the plan; rejected samples are tried again inside it."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.encode import EncodedSample
from factory.dataset.masks import decode_label_png, decode_rle
from factory.dataset.tar import pack
from factory.generation.components import load_components
from factory.generation.shard import Produced, produce


def run(recipe: Recipe, number: int = 0, threads: int = 1) -> tuple[list[EncodedSample], Produced]:
    with ThreadPoolExecutor(threads) as encoder:
        produced = produce(Plan(recipe).shard(number), recipe, load_components(recipe), encoder)
        return [job.result() for job in produced.samples], produced


def test_the_same_shard_has_the_same_bytes_whatever_the_writers(tiny_recipe: Recipe) -> None:
    assert pack(run(tiny_recipe, 1, threads=1)[0]) == pack(run(tiny_recipe, 1, threads=3)[0])


def test_rejected_samples_are_tried_again_with_the_next_attempts_seed(tiny_recipe: Recipe) -> None:
    rows = [json.loads(s.members["json"]) for number in range(3) for s in run(tiny_recipe, number)[0]]
    again = [row for row in rows if row["attempt"] > 0]
    assert len(rows) == 12
    assert again, "the recipe is meant to reject some"
    shard_samples = {s.index: s for number in range(3) for s in Plan(tiny_recipe).shard(number).samples}
    for row in rows:
        planned = shard_samples[row["image"]["id"]]
        assert row["seed"] == planned.seed(tiny_recipe.seed, row["attempt"])
        assert [tried["seed"] for tried in row["attempts"]] == [planned.seed(0, k) for k in range(row["attempt"] + 1)]
        assert row["attempts"][-1] == {"attempt": row["attempt"], "seed": row["seed"], "outcome": "accepted"}
        assert all(tried["outcome"] != "accepted" for tried in row["attempts"][:-1])


def test_a_sample_that_no_attempt_fills_leaves_its_place_empty_and_is_counted(tiny_data: dict[str, Any]) -> None:
    recipe = make_recipe(tiny_data | {"filters": {"min_area": 0.999}, "attempts": 2})
    samples, produced = run(recipe)
    assert samples == []
    assert produced.tally.exhausted == (0, 1, 2, 3)
    assert (produced.tally.attempts, sum(produced.tally.rejected.values())) == (8, 8)


def test_labels_run_lengths_areas_and_boxes_of_a_sample_agree(tiny_recipe: Recipe) -> None:
    for sample in run(tiny_recipe)[0]:
        row, labels = json.loads(sample.members["json"]), decode_label_png(sample.members["seg.png"])
        assert list(sample.members) == ["jpg", "json", "seg.png"]
        for annotation in row["annotations"]:
            mask = decode_rle(annotation["segmentation"])
            assert (labels[mask] == annotation["category_id"]).all()
            assert annotation["area"] == mask.sum()
        assert np.isin(labels, [0, 255, *(a["category_id"] for a in row["annotations"])]).all()
