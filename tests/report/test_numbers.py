"""Every number of a report, against a computation that shares no code with it."""

import json
import math
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.reader import DatasetSample, open_dataset
from factory.dataset.storage import Store
from factory.report.contents import Contents
from factory.report.receipt_sums import ReceiptSums
from tests.support.report_datasets import EXHAUSTED, NAMES


@pytest.fixture(scope="module")
def samples(dataset: tuple[Store, Recipe]) -> list[DatasetSample]:
    return list(open_dataset(dataset[0].address))


@pytest.fixture(scope="module")
def receipts(dataset: tuple[Store, Recipe]) -> list[dict[str, Any]]:
    return [json.loads(dataset[0].get(name) or b"") for name in dataset[0].list("receipts")]


def check_proportion(data: dict[str, Any], count: int, of: int) -> None:
    assert (data["count"], data["of"]) == (count, of)
    interval = binomtest(count, of).proportion_ci(0.95, "wilson")
    assert data["share"] == pytest.approx(count / of, abs=1e-6)
    assert (data["low"], data["high"]) == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_dataset_totals(report: dict[str, Any], dataset: tuple[Store, Recipe], receipts: list[dict[str, Any]]) -> None:
    data = report["dataset"]
    assert (data["name"], data["n"], data["samples"], data["exhausted"]) == ("night/dataset", 20, 19, 1)
    assert (data["complete"], data["shards"], data["shards_planned"]) == (True, 4, 4)
    assert data["bytes"] == sum(receipt["tar"]["bytes"] for receipt in receipts)
    assert data["fingerprint"] == dataset[1].fingerprint()
    assert data["settings"]["filters.min_detector_iou"] == 0.1
    assert "seed" not in data["settings"]


def test_funnel_counts_each_attempt_once_with_wilson_intervals(
    report: dict[str, Any], receipts: list[dict[str, Any]]
) -> None:
    attempts = sum(receipt["attempts"] for receipt in receipts)
    rejected: Counter[str] = Counter()
    for receipt in receipts:
        rejected.update(receipt["rejected"])
    funnel = report["funnel"]
    assert [step["reason"] for step in funnel["steps"]] == ["mask_small", "low_confidence", "detector_disagrees"]
    remaining = attempts
    for step in funnel["steps"]:
        count = rejected[step["reason"]]
        assert (step["entered"], step["rejected"]) == (remaining, count)
        check_proportion(step["of_all"], count, attempts)
        check_proportion(step["passed"], remaining - count, remaining)
        remaining -= count
    check_proportion(funnel["yield"], 19, attempts)
    assert remaining == 19


def test_planned_classes_are_counted_without_making_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts of ten million prompts take minutes."""
    recipe = make_recipe({"classes": NAMES, "n": 50, "prompt_style": "rich", "objects": {1: 0.5, 2: 0.5}})
    plan = Plan(recipe)
    expected = Counter(name for sample in plan.samples() for name in sample.prompt.classes)
    monkeypatch.setattr(Plan, "prompt", None)
    rows = Contents(recipe).classes(plan, ReceiptSums(exhausted=[3]))
    assert {row["name"]: row["planned"] for row in rows} == expected
    assert sum(row["exhausted"] for row in rows) == len(plan.class_names(3))


def test_planned_classes_are_counted_without_planning_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes of ten million samples take minutes."""
    recipe = make_recipe({"classes": NAMES, "n": 10**7, "objects": {1: 0.5, 2: 0.5}})
    monkeypatch.setattr(Plan, "class_names", None)
    rows = Contents(recipe).classes(Plan(recipe), ReceiptSums())
    assert {row["planned"] for row in rows} == {15 * 10**6 // len(NAMES)}


def test_classes(report: dict[str, Any], dataset: tuple[Store, Recipe], samples: list[DatasetSample]) -> None:
    plan = Plan(dataset[1])
    for row in report["classes"]:
        name = row["name"]
        mine = [sample for sample in samples if name in sample.record["classes"]]
        exhausted = int(name in plan.prompt(EXHAUSTED).classes)
        attempts = sum(len(sample.record["attempts"]) for sample in mine) + 3 * exhausted
        masks = [mask for sample in samples for mask, item in zip(sample.masks, sample.annotations, strict=True)
                 if item["category_name"] == name]  # fmt: skip
        assert row["planned"] == sum(name in sample.prompt.classes for sample in plan.samples())
        assert (row["made"], row["exhausted"], row["objects"]) == (len(mine), exhausted, len(masks))
        check_proportion(row["yield"], len(mine), attempts)
        assert row["sizes"] == sizes_of(masks)
        assert row["mean_area"] == pytest.approx(np.mean([mask.mean() for mask in masks]), abs=1e-6)
    assert [row["name"] for row in report["classes"]] == list(NAMES)


def sizes_of(masks: list[Any]) -> dict[str, int]:
    areas = [int(mask.sum()) for mask in masks]
    return {
        "small": sum(area < 1024 for area in areas),
        "medium": sum(1024 <= area < 9216 for area in areas),
        "large": sum(area >= 9216 for area in areas),
    }


def test_objects(report: dict[str, Any], samples: list[DatasetSample]) -> None:
    objects, centres, pairs = report["objects"], np.zeros((16, 16), int), Counter[tuple[str, ...]]()
    masks = [mask for sample in samples for mask in sample.masks]
    for mask in masks:
        rows, columns = np.nonzero(mask)
        x, y = (columns.min() + columns.max() + 1) / 2 / 128, (rows.min() + rows.max() + 1) / 2 / 96
        centres[int(16 * y), int(16 * x)] += 1
    for sample in samples:
        names = {item["category_name"] for item in sample.annotations}
        pairs.update(combinations(sorted(names, key=NAMES.index), 2))
    assert objects["count"] == len(masks)
    assert objects["sizes"] == sizes_of(masks)
    assert objects["centres"] == centres.tolist()
    assert objects["per_image"] == {str(k): v for k, v in Counter(len(s.annotations) for s in samples).items()}
    assert {(a, b): count for a, b, count in objects["pairs"]} == dict(pairs)
    check_histogram(objects["area"], [math.log10(mask.mean()) for mask in masks])


def check_histogram(data: dict[str, Any], values: list[float], tolerance: float = 1e-5) -> None:
    assert data["total"] == len(values) == sum(data["counts"])
    assert (data["mean"], data["sd"]) == pytest.approx((np.mean(values), np.std(values)), abs=tolerance)
    assert (data["min"], data["max"]) == pytest.approx((min(values), max(values)), abs=tolerance)
    width = (data["high"] - data["low"]) / len(data["counts"])
    for percent in (5, 50, 95):
        low, high = (float(np.percentile(values, percent, method=side)) for side in ("lower", "higher"))
        assert low - width - tolerance <= data[f"p{percent}"] <= high + width + tolerance


def test_image_quality(report: dict[str, Any], samples: list[DatasetSample]) -> None:
    greys = [np.asarray(Image.fromarray(sample.image).convert("L"), np.float64) for sample in samples]
    scores = report["images"]["scores"]
    check_histogram(scores["luminance"], [grey.mean() for grey in greys], 0.6)
    check_histogram(scores["contrast"], [grey.std() for grey in greys], 0.6)
    for name, clipped in (("dark", lambda grey: grey <= 2), ("bright", lambda grey: grey >= 253)):
        check_histogram(scores[name], [math.log10(max(1e-4, clipped(grey).mean())) for grey in greys], 0.25)
    sharpness = []
    for grey in greys:
        shifted = sum(np.roll(grey, step, axis) for axis in (0, 1) for step in (1, -1))
        sharpness.append(math.log10(1 + (4 * grey - shifted)[1:-1, 1:-1].var()))
    check_histogram(scores["sharpness"], sharpness, 0.1)
    assert report["images"]["sizes"] == [{"width": 128, "height": 96, "count": 19}]


def test_near_duplicates_are_found_across_shards(report: dict[str, Any], samples: list[DatasetSample]) -> None:
    codes = {sample.key: int(sample.record["filters"]["image_hash"], 16) for sample in samples}
    close = [pair for pair in combinations(codes, 2) if (codes[pair[0]] ^ codes[pair[1]]).bit_count() <= 2]
    duplicates = report["duplicates"]
    assert close == [("000000003", "000000011")]
    assert (duplicates["pairs"], duplicates["groups"], duplicates["redundant"], duplicates["total"]) == (1, 1, 1, 19)
    assert [entry["key"] for entry in duplicates["examples"][0]] == list(close[0])


def test_agreement(report: dict[str, Any], samples: list[DatasetSample]) -> None:
    confidence = [min(item["score"] for item in sample.annotations) for sample in samples]
    iou = [sample.record["filters"]["detector_iou"] for sample in samples]
    cells = np.zeros((20, 20), int)
    for x, y in zip(confidence, iou, strict=True):
        cells[int(20 * y), int(20 * x)] += 1
    agreement = report["agreement"]
    check_histogram(agreement["confidence"], confidence)
    check_histogram(agreement["detector_iou"], iou)
    assert agreement["cells"] == cells.tolist()
    assert agreement["both"] == 19
    assert agreement["correlation"] == pytest.approx(np.corrcoef(confidence, iou)[0, 1], abs=1e-4)


def test_time_by_step_and_worker(report: dict[str, Any], receipts: list[dict[str, Any]]) -> None:
    time, attempts = report["time"], sum(receipt["attempts"] for receipt in receipts)
    assert [(row["step"], row["seconds"]) for row in time["steps"]] == [("generate", 14.0), ("encode", 2.0)]
    assert time["steps"][0]["share"] == pytest.approx(14 / 16)
    assert time["steps"][0]["per_attempt"] == pytest.approx(14 / attempts, abs=1e-6)
    assert time["samples_per_second"] == pytest.approx(19 / 16, abs=1e-4)
    for worker in time["workers"]:
        mine = [receipt for receipt in receipts if receipt["worker"]["host"] == worker["host"]]
        seconds = sum(sum(receipt["seconds"].values()) for receipt in mine)
        accepted = sum(receipt["accepted"] for receipt in mine)
        assert (worker["shards"], worker["samples"], worker["seconds"]) == (2, accepted, seconds)
        assert worker["samples_per_second"] == pytest.approx(accepted / seconds, abs=1e-4)
    assert time["workers_total"] == len(time["workers"]) == 2
    assert (time["first_finished"], time["last_finished"]) == ("2026-11-01T00:00:00+00:00", "2026-11-04T00:00:00+00:00")


def test_audit_shows_random_worst_and_rejected_samples(
    report: dict[str, Any], samples: list[DatasetSample], receipts: list[dict[str, Any]]
) -> None:
    audit, keys = report["audit"], {sample.key for sample in samples}
    assert {entry["key"] for entry in audit["random"]} == keys
    worst = {
        sample.key: min(sample.record["filters"]["detector_iou"], *(item["score"] for item in sample.annotations))
        for sample in samples
    }
    assert [entry["key"] for entry in audit["worst"]] == sorted(keys, key=lambda key: (worst[key], key))
    rejected: Counter[str] = Counter()
    for receipt in receipts:
        rejected.update(receipt["rejected"])
    assert {reason: len(entries) for reason, entries in audit["rejected"].items()} == rejected
    assert max(rejected.values()) <= 12


def test_errors_and_lost_workers(report: dict[str, Any]) -> None:
    assert (report["run"]["status"], report["run"]["lost_workers"]) == ("done", 2)
    assert report["run"]["errors"] == ["lost a worker"]
    assert report["verdict"]["level"] == "check"
    assert report["verdict"]["problems"] == [
        "1 sample exhausted all attempts",
        "5.3 % of the images are near-duplicates of others",
    ]
