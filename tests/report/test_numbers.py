"""Every number of a report, against a computation that shares no code with it."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from factory.config.plan import Plan
from factory.config.recipe import Recipe
from factory.dataset.reader import DatasetSample, open_dataset
from factory.dataset.receipt_index import IndexEntry, ReceiptIndex
from factory.dataset.receipts import tar_name
from factory.dataset.storage import Store
from factory.dataset.tar import unpack
from factory.errors import UserError
from factory.report.measure import measure
from factory.report.run import write_report
from factory.report.shard_measures import MeasureSettings, ShardMeasures, _measure
from tests.support.bucket import Bucket, serving
from tests.support.report_datasets import EXHAUSTED, NAMES, make_report_set


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Recipe]:
    return make_report_set(tmp_path_factory.mktemp("numbers") / "night" / "dataset")


@pytest.fixture(scope="module")
def report(dataset: tuple[Store, Recipe], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("numbers-out")
    returned = write_report(dataset[0].address, str(out), features=0)
    stored: dict[str, Any] = json.loads((out / "report.json").read_text())
    assert stored == returned
    return stored


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


def test_report_of_a_dataset_that_grows_meanwhile_counts_the_same_shards_everywhere(
    dataset: tuple[Store, Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Store(str(shutil.copytree(dataset[0].address, tmp_path / "set")))
    late = "receipts/000003.json"
    content, entries = store.get(late) or b"", ReceiptIndex.entries
    store.delete(late)

    def listed(index: ReceiptIndex, tags: Mapping[int, str]) -> dict[int, IndexEntry]:
        found = entries(index, tags)
        store.put(late, content)
        return found

    monkeypatch.setattr(ReceiptIndex, "entries", listed)
    data = measure(store, features=0, audit=False).data
    assert (data["dataset"]["shards"], data["dataset"]["complete"]) == (3, False)
    assert data["dataset"]["samples"] == data["funnel"]["yield"]["count"] == data["duplicates"]["total"]


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


def test_a_bucket_gives_the_same_numbers(
    dataset: tuple[Store, Recipe], report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Bucket()) as bucket:
        for name, value in bucket.environment().items():
            monkeypatch.setenv(name, value)
        for name in dataset[0].list(""):
            bucket.put(f"b/night/dataset/{name}", dataset[0].get(name) or b"")
        remote = write_report("s3://b/night/dataset", "s3://b/night/report", features=0)
        assert {"b/night/report/index.html", "b/night/report/report.json"} <= bucket.objects.keys()
    assert remote["dataset"]["address"] == "s3://b/night/dataset"
    text = json.dumps(report).replace(report["created"], remote["created"])
    assert json.loads(text.replace(report["dataset"]["address"], "s3://b/night/dataset")) == remote


def test_damaged_shards_are_listed_and_left_out(tmp_path: Path) -> None:
    store, _ = make_report_set(tmp_path / "set")
    (tmp_path / "set" / tar_name(1)).write_bytes(b"junk")
    (tmp_path / "set/rejected/000000.json").write_bytes(b"junk")
    store.put("quarantine/000003.json", json.dumps({"shard": 3, "error": "ValueError: <b>no</b>"}).encode())
    report = write_report(store, str(tmp_path / "out"), features=0)
    assert [item["shard"] for item in report["run"]["damaged"]] == [1]
    assert report["run"]["quarantined"] == [{"shard": 3, "error": "ValueError: <b>no</b>"}]
    assert report["duplicates"]["total"] == 15
    assert report["verdict"]["level"] == "bad"
    assert "1 shard cannot be read; 1 shard failed repeatedly" in report["verdict"]["sentence"]
    assert "<b>no" not in (tmp_path / "out/index.html").read_text()


def test_a_dataset_without_samples_and_scores_has_a_report(tmp_path: Path) -> None:
    store, recipe = make_report_set(tmp_path / "set")
    for name in store.list("receipts"):
        store.delete(name)
    report = write_report(store, str(tmp_path / "out"), features=0)
    assert report["verdict"]["sentence"].startswith("Needs attention: 0 of 20 samples in 0 of 4 shards")
    assert report["funnel"]["yield"]["share"] is None
    assert sum(row["planned"] for row in report["classes"]) == sum(
        len(s.prompt.classes) for s in Plan(recipe).samples()
    )


def test_invalid_targets_and_comparisons_are_refused_before_work(dataset: tuple[Store, Recipe], tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("mine")
    with pytest.raises(UserError, match="not a report; give another folder with --out"):
        write_report(dataset[0], str(tmp_path / "site"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot use"):
        write_report(dataset[0], str(tmp_path / "file" / "out"))
    with pytest.raises(UserError, match="is not a dataset"):
        write_report(dataset[0], str(tmp_path / "out"), compare=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="there is no report"):
        write_report(dataset[0], str(tmp_path / "out"), compare=str(tmp_path / "nothing.json"))
    with pytest.raises(UserError, match="is not a dataset"):
        write_report(str(tmp_path / "nothing"), str(tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


def test_every_quarantined_shard_is_counted(tmp_path: Path) -> None:
    """Only the first errors are shown, but the verdict must not count only those."""
    store, _ = make_report_set(tmp_path / "set")
    for number in range(5, 30):
        store.put(f"quarantine/{number:06d}.json", b"not JSON" if number == 5 else b'{"error": "late"}')
    report = write_report(store, str(tmp_path / "out"), features=0)
    assert "25 shards failed repeatedly" in report["verdict"]["sentence"]
    errors = [item["error"] for item in report["run"]["quarantined"]]
    assert errors == ["", *["late"] * 19, *[""] * 5]
    assert (tmp_path / "out/index.html").read_text().count("failed repeatedly</summary>") == 20


def test_report_does_not_depend_on_the_number_of_shards_that_are_read_ahead(
    dataset: tuple[Store, Recipe], report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.report.measure._AHEAD", 1)
    again = write_report(dataset[0].address, str(tmp_path), features=0)
    assert again | {name: report[name] for name in ("created", "drift")} == report  # both hold the time


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (None, "its annotation does not match schemas/annotation.json: KeyError.*filters"),
        ({"image_hash": 7}, "its annotation does not match schemas/annotation.json: TypeError"),
        ({"image_hash": "f" * 17}, "its image_hash has more than 64 bits"),
    ],
)
def test_sample_without_valid_measures_is_damage(
    dataset: tuple[Store, Recipe], filters: dict[str, Any] | None, message: str
) -> None:
    sample = next(unpack(dataset[0].get(tar_name(0)) or b""))
    record = json.loads(sample.members["json"])
    record.pop("filters")
    record |= {} if filters is None else {"filters": filters}
    sample.members["json"] = json.dumps(record).encode()
    with pytest.raises(ValueError, match=message):
        _measure(sample, MeasureSettings(3, 0.0), ShardMeasures(0))
