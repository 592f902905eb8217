"""A night whose samples exist: verified, exported, recorded, repeated without a change, damaged, taken by another."""

import datetime
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factory.dataset.lease import LEASE, Lease, leased
from factory.dataset.storage import Store
from factory.engine.scheduler import State
from factory.generation import run as generation_run
from factory.nightly import preflight, steps
from factory.nightly.context import NightContext
from factory.nightly.record import NightFile, latest_night, list_nights
from factory.nightly.run import preview_night, run_night
from factory.nightly.steps import prepare_night, start_night
from tests.nightly.conftest import DATE, Make
from tests.support.bucket import Bucket
from tests.support.datasets import make_dataset

Put = Callable[[NightContext], NightContext]


def states(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of every file; the lock file of the store has none of its own."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


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
    assert data["verified"] == {"shards": 6, "of": 6, "damaged": []}
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
    assert f"Report ({reports[2]['verdict']['level']}): {reports[2]['verdict']['sentence']}" in outcomes[2].to_text()


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
    assert "1 shards are damaged: 2. Repair them with `factory verify" in outcome.message
    assert not (tmp_path / "nights/2026-11-25/exports").exists()
    assert latest_night(context.root) is None
    assert json.loads((tmp_path / "nights/2026-11-25/night.json").read_text())["error"] == outcome.message


def test_sample_of_shards_is_verified_and_depends_on_the_date(make: Make, generated: Put) -> None:
    context = generated(make(verify={"shards": 2}))
    night = run_night(context).night
    assert night is not None
    assert night.verified is not None
    assert (night.verified.shards, night.verified.of) == (2, 6)
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
        ({"mode": "grow", "target": 20}, "was started in mode fresh"),
    ):
        outcome = run_night(make(**change))
        assert (outcome.exit_code, outcome.state) == (2, "failed")
        assert message in outcome.message
    assert states(tmp_path / "nights") == before


def test_preflight_rejects_a_store_without_conditional_writes(make: Make, bucket: Bucket) -> None:
    bucket.ignores_conditions = True
    outcome = run_night(make(root="s3://b/nights"))
    assert outcome.exit_code == 2
    assert "does not honour conditional writes: it created 2026-11-25/preflight-" in outcome.message
    assert bucket.objects == {}


def test_preflight_rejects_folders_that_a_night_did_not_make(make: Make, tmp_path: Path) -> None:
    (tmp_path / "nights/2026-11-25").mkdir(parents=True)
    (tmp_path / "nights/2026-11-25/thesis.tex").write_text("mine")
    outcome = run_night(make())
    assert (outcome.exit_code, "contains 2026-11-25/thesis.tex, but no night.json" in outcome.message) == (2, True)
    (tmp_path / "nights/recipe.yaml").write_text("n: 1")
    assert "is a dataset; give another `root`" in run_night(make()).message
    assert not (tmp_path / "nights/2026-11-25/night.json").exists()


def test_preflight_rejects_a_full_disk_before_anything_is_made(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 300 * 2**20})())
    assert run_night(make(recipe={"n": 8000})).exit_code == 75
    context = make(recipe={"n": 8000})
    outcome = run_night(context)
    assert "has 0.3 GB of free space, but the night needs about" in outcome.message
    assert list(context.dataset.list("")) == [".lock"], "the lease was released"
    found = NightFile(context.root, DATE).load()
    assert found is not None
    assert (found.state, found.exit_code, found.runs) == ("failed", 75, 0)


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"recipe": {"generator": {"model": "./models/none"}}}, 2, "there is no model folder"),
        ({"recipe": {"classes": ["dog", "unicorn"], "masks": {"source": "detector"}}}, 2, "unicorn"),
        ({"recipe": {"generator": {"revision": "0" * 40}}}, 2, "but its content is now"),
        ({"budget": {"gpu_hours": 4}}, 2, "budget.gpu_hours is never used up"),
        ({"recipe": {"engine": {"address": "127.0.0.1:1"}}}, 75, "nothing is listening at 127.0.0.1:1"),
        ({"notify": [{"webhook": "$NO_SUCH_HOOK"}]}, 2, "the environment variable NO_SUCH_HOOK"),
    ],
)
def test_preflight_finds_what_would_stop_the_workers(
    make: Make, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], code: int, message: str
) -> None:
    monkeypatch.delattr(generation_run, "Scheduler")
    context = make()
    if "generator" in change.get("recipe", {}):
        generator = {**context.recipe.generator.model_dump(mode="json"), **change["recipe"]["generator"]}
        change = {"recipe": {"generator": generator}}
    outcome = run_night(make(**change))
    assert (outcome.exit_code, outcome.state) == (code, "failed"), outcome.message
    assert message in outcome.message


def test_workers_with_other_versions_are_rejected() -> None:
    own = preflight.versions()
    preflight.check_versions([("a", own)])
    with pytest.raises(preflight.UserError, match=r"node-2 has other versions than the driver: torch 1\.0 instead of "):
        preflight.check_versions([("node-1", own), ("node-2", {**own, "torch": "1.0"})])


def test_dry_run_writes_nothing_and_names_the_limit_and_what_would_be_deleted(
    make: Make, generated: Put, tmp_path: Path
) -> None:
    for days in (2, 1):
        old = make(date=DATE - datetime.timedelta(days=days))
        Store(old.config.root).put(f"{old.folder}/night.json", record(old.date, "complete"))
    before = states(tmp_path / "nights")
    data = preview_night(make(budget={"hours": 6}, keep={"nights": 2}, timezone="Europe/Berlin"))
    assert (data["action"], data["seed"], data["would_delete"]) == ("start", 20261125, ["2026-11-23"])
    assert datetime.datetime.fromisoformat(data["until"]).utcoffset() in (
        datetime.timedelta(hours=hours) for hours in (1, 2)
    )
    assert states(tmp_path / "nights") == before
    run_night(generated(make()))
    assert preview_night(make())["action"] == "nothing"


def record(date: datetime.date, state: str, **fields: Any) -> bytes:
    stamp = "2026-11-25T21:00:00Z"
    data = {
        "date": date.isoformat(),
        "state": state,
        "mode": "fresh",
        "config": "c",
        "dataset": f"{date.isoformat()}/dataset",
        "started": stamp,
        "updated": stamp,
        "period": {"started": stamp},
        "n": 12,
        **fields,
    }
    return json.dumps(data).encode()


def test_use_of_a_killed_run_counts_for_the_budget(make: Make, generated: Put) -> None:
    context = generated(make(budget={"hours": 6}, price_per_gpu_hour=2.0))
    progress = {
        "updated": "2099-01-01T00:00:00+00:00",
        "seconds": 3600.0,
        "gpu_seconds": 7200.0,
        "worker_seconds": 3600.0,
    }
    context.dataset.put("progress.json", json.dumps(progress).encode())
    night = run_night(context).night
    assert night is not None
    assert (night.gpu_hours, night.worker_hours, night.cost, night.runs) == (2.0, 1.0, 4.0, 2)
    assert night.period.gpu_seconds == 7200
    assert night.seconds["generate"] >= 3600


def test_night_whose_budget_is_used_up_starts_no_ray(
    make: Make, generated: Put, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A scheduler that repeats a killed run must not get a second budget; the next run after that gets one."""
    context = generated(make(budget={"hours": 1}, exports=["coco"]))
    monkeypatch.delattr(generation_run, "connected")
    for name in ("receipts/000005.json", "train/000005.tar", "manifest/000005.parquet"):
        (tmp_path / "nights/2026-11-25/dataset" / name).unlink()
    file = NightFile(context.root, DATE)
    night = file.load()
    assert night is not None
    started = night.started - datetime.timedelta(hours=2)
    file.save(night.changed(period=night.period.model_copy(update={"started": started})))
    outcome = run_night(make(budget={"hours": 1}, exports=["coco"]))
    assert (outcome.state, outcome.exit_code) == ("partial", 0)
    assert outcome.night is not None
    assert (outcome.night.samples, outcome.night.exports["coco"].shards) == (10, 5)
    outcome = run_night(make(budget={"hours": 1}, exports=["coco"]))
    assert (outcome.state, outcome.exit_code) == ("failed", 1), "it went on to the engine, which is missing here"
    assert "connected" in outcome.message
    assert isinstance(outcome.unexpected, NameError)


def test_grow_whose_target_is_reached_makes_no_more_nights(make: Make, finished_set: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"mode": "grow", "target": 12, "recipe": {"seed": 20261125}}
    context = make(**fields)
    recipe, totals = steps.prepare_night(context, None)
    NightFile(context.root, DATE).save(steps.start_night(context, None, recipe, totals))
    shutil.copytree(finished_set, tmp_path / "nights/dataset")
    assert run_night(make(**fields)).state == "complete"
    before = states(tmp_path / "nights")
    outcome = run_night(make(date=DATE + datetime.timedelta(days=1), **fields))
    assert (outcome.exit_code, outcome.unchanged) == (0, True)
    assert "The night of 2026-11-25 reached the target" in outcome.message
    assert states(tmp_path / "nights") == before
    assert list(list_nights(context.root)) == [DATE]


def test_quarantined_shards_are_not_reported_as_a_used_up_budget(
    make: Make, finished_set: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In `grow`, a night makes only its part of the missing shards, whether there is a budget or not."""
    monkeypatch.setattr(generation_run, "_run", lambda *_: State(1, quarantined=[0]))
    context = make(mode="grow", target=12, recipe={"seed": 20261125, "n": 2})
    recipe, totals = steps.prepare_night(context, None)
    NightFile(context.root, DATE).save(steps.start_night(context, None, recipe, totals))
    outcome = run_night(context)
    assert (outcome.state, outcome.exit_code) == ("failed", 3)
    assert "1 shards are quarantined after repeated errors: 0" in outcome.message


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
        context.root.put("latest.json", record(DATE + datetime.timedelta(days=earlier), "complete"))
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
    monkeypatch.setattr("factory.dataset.lease.EXPIRES", 1.5)
    context = generated(make())
    stamp = "2026-01-01T00:00:00+00:00"
    context.dataset.put(LEASE, Lease("abc", "node-7", 12, "other-boot/pid:[1]/5", stamp, stamp).to_json())
    assert run_night(context).state == "complete"


def test_night_without_any_sample_fails_with_a_code_that_no_scheduler_takes_for_success(make: Make) -> None:
    context = make(recipe={"n": 2, "attempts": 1, "filters": {"min_area": 0.999}})
    recipe, totals = prepare_night(context, None)
    NightFile(context.root, context.date).save(start_night(context, None, recipe, totals))
    make_dataset(recipe, Path(context.dataset.address))
    outcome = run_night(context)
    assert (outcome.state, outcome.exit_code) == ("failed", 3)
    assert "no sample was accepted in any attempt" in outcome.message
