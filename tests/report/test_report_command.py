"""Reports of buckets, and of damaged, empty and growing datasets; what a report refuses."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from factory.config.plan import Plan
from factory.config.recipe import Recipe
from factory.dataset.receipt_index import IndexEntry, ReceiptIndex
from factory.dataset.receipts import tar_name
from factory.dataset.storage import Store
from factory.dataset.tar import unpack
from factory.errors import UserError
from factory.report.measure import _name, measure
from factory.report.run import write_report
from factory.report.shard_measures import MeasureSettings, ShardMeasures, _measure
from tests.support.bucket import Bucket
from tests.support.in_process import invoke
from tests.support.report_datasets import make_report_set


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


def test_a_bucket_gives_the_same_numbers(dataset: tuple[Store, Recipe], report: dict[str, Any], bucket: Bucket) -> None:
    for name in dataset[0].list(""):
        bucket.put(f"b/night/dataset/{name}", dataset[0].get(name) or b"")
    remote = write_report("s3://b/night/dataset", "s3://b/night/report", features=0)
    assert {"b/night/report/index.html", "b/night/report/report.json"} <= bucket.objects.keys()
    assert remote["dataset"]["address"] == "s3://b/night/dataset"
    text = json.dumps(report).replace(report["created"], remote["created"])
    assert json.loads(text.replace(report["dataset"]["address"], "s3://b/night/dataset")) == remote


@pytest.mark.parametrize("out", ["set", "set/train", "other/../set/train", "s3://b/set", "s3://b/set/train"])
def test_report_is_not_written_into_the_dataset(tmp_path: Path, out: str) -> None:
    remote = out.startswith("s3:")
    dataset = "s3://b/set" if remote else str(tmp_path / "set")
    with pytest.raises(UserError, match=r"^--out .* is inside the dataset .*; give a folder outside of it"):
        write_report(dataset, out if remote else str(tmp_path / out))
    assert not list(tmp_path.iterdir())


def test_a_link_to_itself_cannot_be_written(dataset: tuple[Store, Recipe], tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"^cannot use .*loop"):
        write_report(dataset[0], str(tmp_path / "loop"), features=0)


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
    page = (tmp_path / "out/index.html").read_text()
    assert "<b>no" not in page
    per_image = page[page.index("<strong>Objects per image") :].partition("</table>")[0]
    assert sum(map(float, re.findall(r"([\d.]+)\W*%</td>", per_image))) == pytest.approx(100, abs=0.2)


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


@pytest.mark.parametrize(
    ("address", "name"),
    [("/data/my#set?/dataset", "my#set?/dataset"), ("s3://bucket/2026-11-25/dataset/", "2026-11-25/dataset")],
)
def test_name_of_a_dataset_is_the_end_of_its_address(address: str, name: str) -> None:
    assert _name(address) == name


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
    assert not (tmp_path / "out").exists()
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


def test_progress_counts_the_samples_that_exist(tmp_path: Path) -> None:
    store, _ = make_report_set(tmp_path / "set")
    store.delete("receipts/000003.json")
    lines = invoke("report", tmp_path / "set").stderr.splitlines()
    assert lines[-1].startswith("measuring samples 14/14")
