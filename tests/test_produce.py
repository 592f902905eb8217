"""A shard is a pure function of the plan; rejected samples are retried within it."""

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
    assert produced.tally.short == (0, 1, 2, 3)
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
