"""A night whose samples exist: verified, exported, recorded, repeated without a change, damaged, taken by another."""

import datetime
import json
import os
import shutil
from pathlib import Path

import pytest

from factory.dataset.lease import LEASE, Lease, leased
from factory.nightly import steps
from factory.nightly.latest import latest_night
from factory.nightly.record import NightFile
from factory.nightly.run import preview_night, run_night
from tests.nightly.conftest import DATE, Make, Put, put_night, record, states
from tests.support.bucket import Bucket


@pytest.fixture(params=["folder", "s3://b/nights", "gs://b/nights"])
def anywhere(request: pytest.FixtureRequest, bucket: Bucket, make: Make) -> Make:
    if request.param == "folder":
        return make
    return lambda **fields: make(root=request.param, **fields)


def test_night_is_verified_exported_and_recorded(anywhere: Make, generated: Put) -> None:
    context = generated(anywhere(exports=["coco", "hf"], price_per_gpu_hour=2.1))
    outcome = run_night(context)
    assert (outcome.state, outcome.exit_code, context.root.get("2026-11-25/dataset/lease.json")) == (
        "complete",
        0,
        None,
    )
    data = json.loads(context.root.get("2026-11-25/night.json") or b"")
    assert (data["state"], data["samples"], data["new_samples"], data["shards"]) == ("complete", 12, 12, 6)
    assert data["yield"] == round(12 / data["attempts"], 4)
    assert data["verified"] == {"shards": 6, "of": 6, "damaged": [], "at": data["verified"]["at"]}
    assert data["cost"] == 0.0
    assert context.root.get("latest.json") == context.root.get("2026-11-25/night.json")
    exported = context.root.list("2026-11-25/exports")
    images = [name for name in exported if name.startswith("2026-11-25/exports/coco/") and name.endswith(".jpg")]
    assert len(images) == 12
    assert data["exports"]["coco"]["train"] + data["exports"]["coco"]["val"] == 12
    assert any(name.endswith(".parquet") for name in exported)
    assert data["report"]["path"] == "2026-11-25/report"
    assert (context.root.get("2026-11-25/report/index.html") or b"").startswith(b"<!DOCTYPE html>")
    stored = json.loads(context.root.get("2026-11-25/exports/coco/annotations/instances_train.json") or b"")
    assert len(stored["images"]) == data["exports"]["coco"]["train"]


def test_report_is_compared_with_the_good_nights_before(make: Make, generated: Put, bucket: Bucket) -> None:
    """The access to the bucket is that of the recipe, also for earlier reports."""
    recipe = {"seed": 20261125, "store": {"endpoint": bucket.endpoint, "allow_http": True, "region": "us-east-1"}}
    days = [DATE + datetime.timedelta(days=day) for day in range(3)]
    root = make(root="s3://b/nights", recipe=recipe).root
    outcomes = [run_night(generated(make(date=day, root="s3://b/nights", recipe=recipe))) for day in days]
    reports = [json.loads(root.get(f"{day}/report/report.json") or b"") for day in days]
    assert [report["drift"]["nights"] for report in reports] == [0, 1, 2]
    assert [report["drift"]["ignored"] for report in reports] == [[], [], []]
    assert [report["dataset"]["name"] for report in reports] == ["2026-11-25", "2026-11-26", "2026-11-27"]
    assert reports[1]["verdict"]["compared"] == "similar"
    assert f"Report: {reports[2]['verdict']['sentence']}" in outcomes[2].to_text()


def test_complete_night_is_left_alone_without_models_and_ray(
    anywhere: Make, generated: Put, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_night(generated(anywhere(exports=["coco"])))
    before, objects = states(tmp_path / "nights"), dict(bucket.objects)
    for name in ("prepare", "run_prepared", "verify"):
        monkeypatch.delattr(steps, name)
    bucket.requests.clear()
    outcome = run_night(anywhere(exports=["coco"]))
    assert (outcome.exit_code, outcome.unchanged, outcome.state) == (0, True, "complete")
    assert states(tmp_path / "nights") == before
    assert bucket.objects == objects, "the generation of an object changes with every write"
    assert {method for method in bucket.requests if not method.startswith("GET")} == set()


def test_night_whose_dataset_was_deleted_is_not_complete(make: Make, generated: Put, tmp_path: Path) -> None:
    run_night(generated(make()))
    shutil.rmtree(tmp_path / "nights/2026-11-25/dataset")
    assert preview_night(make())["action"] == "start"


def test_export_that_is_added_later_is_made_without_touching_the_dataset(
    make: Make, generated: Put, tmp_path: Path
) -> None:
    run_night(generated(make(exports=["coco"])))
    folder = tmp_path / "nights/2026-11-25"
    shards, coco = states(folder / "dataset/train"), states(folder / "exports/coco")
    assert run_night(make(exports=["coco", "voc"])).state == "complete"
    assert (states(folder / "dataset/train"), states(folder / "exports/coco")) == (shards, coco)
    assert (folder / "exports/voc/Annotations").is_dir()


def test_files_of_an_earlier_export_are_removed_from_a_bucket(make: Make, generated: Put, bucket: Bucket) -> None:
    bucket.put("b/nights/2026-11-25/exports/hf/data/train-00000-of-00009.parquet", b"old")
    run_night(generated(make(root="s3://b/nights", exports=["hf"])))
    names = [name for name in bucket.objects if "/exports/hf/" in name]
    assert names
    assert not [name for name in names if "of-00009" in name or "/.export/" in name]


def test_damage_fails_the_night_and_is_not_exported(make: Make, generated: Put, tmp_path: Path) -> None:
    context = generated(make(exports=["coco"]))
    tar = tmp_path / "nights/2026-11-25/dataset/train/000002.tar"
    os.truncate(tar, 4000)
    outcome = run_night(context)
    assert (outcome.exit_code, outcome.state) == (5, "failed")
    assert "1 shard is damaged: 2. Repair the dataset with `factory verify" in outcome.message
    assert not (tmp_path / "nights/2026-11-25/exports").exists()
    assert latest_night(context.root) is None
    assert json.loads((tmp_path / "nights/2026-11-25/night.json").read_text())["error"] == outcome.message


def test_night_that_is_continued_and_found_damaged_is_the_latest_no_more(
    make: Make, generated: Put, tmp_path: Path
) -> None:
    """Then the newest good night is: at first the one before, and the same one again once it is repaired."""
    put_night(make().root, DATE - datetime.timedelta(days=2))
    put_night(make().root, DATE - datetime.timedelta(days=1), "failed")
    assert run_night(generated(make())).state == "complete"
    tar = tmp_path / "nights/2026-11-25/dataset/train/000002.tar"
    content = tar.read_bytes()
    os.truncate(tar, 4000)
    assert run_night(make(exports=["coco"])).exit_code == 5
    latest = latest_night(make().root)
    assert latest is not None
    assert latest.date == DATE - datetime.timedelta(days=2)
    tar.write_bytes(content)
    assert run_night(make(exports=["coco"])).state == "complete"
    assert make().root.get("latest.json") == make().root.get("2026-11-25/night.json")


def test_sample_of_shards_is_verified_and_depends_on_the_date(make: Make, generated: Put) -> None:
    context = generated(make(verify={"shards": 2}))
    night = run_night(context).night
    assert night is not None
    assert night.verified is not None
    assert (night.verified.shards, night.verified.of) == (2, 6)
    damaged = min(set(range(6)) - set(steps.sampled(list(range(6)), 2, DATE)))
    found = night.changed(verified=night.verified.model_copy(update={"damaged": (damaged,)}))
    context.root.put("2026-11-25/night.json", found.to_json())
    again = steps.verify_night(context, found)
    assert again.verified is not None
    assert again.verified.shards == 3, "the shard that was damaged is checked, too"
    choices = {tuple(steps.sampled(list(range(100)), 5, DATE + datetime.timedelta(days=day))) for day in range(20)}
    assert len(choices) == 20
    assert steps.sampled(list(range(100)), 5, DATE) == steps.sampled(list(range(99, -1, -1)), 5, DATE)


def test_another_driver_has_its_own_exit_code(make: Make, generated: Put) -> None:
    context = generated(make())
    with leased(context.dataset):
        outcome = run_night(make())
    assert (outcome.exit_code, outcome.state) == (6, "held")
    assert f"process {os.getpid()} on" in outcome.message
    found = NightFile(context.root, DATE).load()
    assert found is not None
    assert found.state == "running", "the record belongs to the other driver"


def test_changed_recipe_is_rejected_and_the_record_stays(make: Make, generated: Put, tmp_path: Path) -> None:
    run_night(generated(make()))
    before = states(tmp_path / "nights")
    for change, message in (
        ({"recipe": {"batch": 1}}, "was made with a different recipe: batch: 2 -> 1"),
        ({"recipe": {"n": 14}}, "n: 12 -> 14"),
        ({"recipe": {"earlier": [4]}}, "earlier: [] -> [4]"),
        ({"mode": "grow", "target": 20}, "was started in mode fresh"),
    ):
        outcome = run_night(make(**change))
        assert (outcome.exit_code, outcome.state) == (2, "failed")
        assert message in outcome.message
    assert states(tmp_path / "nights") == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_night_stays_complete_if_it_is_stopped_while_old_nights_are_deleted(
    error: type[BaseException], make: Make, generated: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise error

    monkeypatch.setattr("factory.nightly.run.expired_nights", stop)
    context = generated(make(keep={"nights": 1}))
    assert run_night(context).exit_code in (1, 130)
    night = latest_night(context.root)
    assert night is not None
    assert (night.state, night.exit_code) == ("complete", 0)
    assert context.root.get("2026-11-25/night.json") == context.root.get("latest.json")
    assert run_night(context).unchanged


@pytest.mark.parametrize("earlier", [None, -1, 1])
def test_latest_night_is_recorded_although_the_driver_was_killed_just_before(
    earlier: int | None, make: Make, generated: Put
) -> None:
    context = generated(make())
    assert run_night(context).state == "complete"
    context.root.delete("latest.json")
    if earlier is not None:
        other = DATE + datetime.timedelta(days=earlier)
        put_night(context.root, other)
        context.root.put("latest.json", record(other, "complete"))
    assert run_night(context).unchanged
    night = latest_night(context.root)
    assert night is not None
    assert night.date == (DATE if earlier != 1 else DATE + datetime.timedelta(days=1))


def test_unreadable_record_stops_the_night(make: Make, tmp_path: Path) -> None:
    (tmp_path / "nights/2026-11-25").mkdir(parents=True)
    (tmp_path / "nights/2026-11-25/night.json").write_text('{"state": "comp')
    outcome = run_night(make())
    assert (outcome.exit_code, "is not the record of a night" in outcome.message) == (2, True)
    assert (tmp_path / "nights/2026-11-25/night.json").read_text() == '{"state": "comp'


def test_driver_elsewhere_without_heartbeat_is_taken_over(
    make: Make, generated: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.dataset.lease.EXPIRES", 0.3)
    monkeypatch.setattr("factory.dataset.lease._POLL_INTERVAL", 0.05)
    context = generated(make())
    stamp = "2026-01-01T00:00:00+00:00"
    context.dataset.put(LEASE, Lease("abc", "node-7", 12, "other-boot/pid:[1]/5", stamp, stamp).to_json())
    assert run_night(context).state == "complete"
