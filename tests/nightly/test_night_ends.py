"""How a night ends that is interrupted, meets a defect or runs out of budget, and what its record then says."""

import datetime
import errno
import itertools
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factory import exit_codes
from factory.config.recipe import make_recipe
from factory.dataset import lease
from factory.dataset.storage import Store, StoreFullError
from factory.errors import LeaseHeldError, StoreUnavailableError, UserError
from factory.generation import run as generation_run
from factory.nightly import preflight, run, steps
from factory.nightly.budget import with_lost_usage
from factory.nightly.latest import latest_night
from factory.nightly.outcome import summary_of
from factory.nightly.preflight import estimated_size
from factory.nightly.record import NightFile, parse_night
from factory.nightly.run import run_night
from tests.nightly.conftest import DATE, Make, Put, raising, record
from tests.support.bucket import Bucket, Fault

USAGE = ("seconds", "gpu_seconds", "worker_seconds")


@pytest.mark.parametrize("step", ["check_store", "check_workers", "verify_night"])
def test_interrupted_or_defective_night_has_an_outcome(
    step: str, make: Make, generated: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = generated(make())
    monkeypatch.setattr(run, step, raising(KeyboardInterrupt()))
    outcome = run_night(context)
    assert (outcome.state, outcome.exit_code) == ("interrupted", exit_codes.INTERRUPTED)
    assert outcome.message == "Interrupted; committed shards are kept, and the next run continues."
    monkeypatch.setattr(run, step, raising(KeyError("x")))
    outcome = run_night(make())
    assert (outcome.state, outcome.exit_code, outcome.message) == ("failed", 1, "unexpected KeyError: 'x'")
    assert isinstance(outcome.unexpected, KeyError)
    night = NightFile(context.root, DATE).load()
    assert night is not None
    assert night.state == ("running" if step == "check_store" else "failed")


def test_a_signal_while_the_last_metrics_are_served_stops_the_night(
    make: Make, generated: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For `generate`, the run is complete at this moment; a night would go on for the time of the verification."""
    run_prepared = steps.run_prepared
    monkeypatch.setattr(steps, "run_prepared", lambda *given: replace(run_prepared(*given), interrupted=True))
    monkeypatch.setattr(run, "verify_night", raising(AssertionError("the night goes on")))
    outcome = run_night(generated(make()))
    assert (outcome.state, outcome.exit_code) == ("interrupted", exit_codes.INTERRUPTED)
    assert outcome.night is not None
    assert outcome.night.samples == 12


def test_interrupted_night_does_not_wait_for_a_store_that_does_not_respond(
    make: Make, generated: Put, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited for `store.patience` to write its record, and was killed before it sent its notifications."""
    context = generated(make(root="s3://b/nights", recipe={"store": {"patience": 40}}))

    def interrupt(*_: object) -> None:
        bucket.faults.append(Fault("outage", times=None, seconds=100))
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "verify_night", interrupt)
    monkeypatch.setattr(run, "_PATIENCE", 0.5)
    monkeypatch.setattr(lease, "_RELEASE_PATIENCE", 0.5)
    started = time.monotonic()
    assert run_night(context).state == "interrupted"
    assert time.monotonic() - started < 30


def test_a_full_temporary_folder_is_a_temporary_failure(
    make: Make, generated: Put, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exports of a root in a bucket are made there. The record must have the code with which the command ends."""
    context = generated(make(root="s3://b/nights", exports=["coco"]))
    monkeypatch.setattr("tempfile.mkdtemp", raising(OSError(errno.ENOSPC, "No space left on device")))
    outcome = run_night(context)
    assert (outcome.state, outcome.exit_code, outcome.unexpected) == ("failed", exit_codes.TRY_AGAIN, None)
    assert outcome.message == "cannot write: No space left on device. Free some space and run this night again."
    night = NightFile(context.root, DATE).load()
    assert night is not None
    assert (night.exit_code, night.error) == (exit_codes.TRY_AGAIN, outcome.message)


def test_driver_that_lost_the_night_changes_nothing(
    make: Make, generated: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = generated(make())
    before = context.root.get("2026-11-25/night.json")
    monkeypatch.setattr(run, "check_workers", raising(LeaseHeldError("another driver took over")))
    outcome = run_night(context)
    assert (outcome.state, outcome.exit_code) == ("held", exit_codes.HELD)
    assert context.root.get("2026-11-25/night.json") == before


def test_night_without_samples_whose_budget_was_used_up_before_this_run_is_a_failure(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(generation_run, "connected")
    context = make(budget={"hours": 1}, timezone="Europe/Berlin")
    recipe, totals = steps.prepare_night(context, None)
    night = steps.start_night(context, None, recipe, totals)
    started = datetime.datetime(2026, 11, 25, 1, 30, tzinfo=datetime.UTC)
    night = night.changed(period=night.period.model_copy(update={"started": started}))
    NightFile(context.root, DATE).save(night)
    outcome = run_night(make(budget={"hours": 1}, timezone="Europe/Berlin"))
    assert (outcome.state, outcome.exit_code) == ("failed", exit_codes.FAILED)
    assert outcome.message == (
        "the budget of this night, which counts from 2026-11-25T02:30+01:00, was used up before this run started, and "
        "the night has no samples; increase the budget and run this night again, or let the next night generate them."
    )


def test_budget_that_is_used_up_before_the_first_shard_is_a_failure(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_prepared = steps.run_prepared

    def slow(*arguments: Any) -> generation_run.RunSummary:
        """As if every shard took longer than the budget and its grace."""
        return run_prepared(*arguments[:-1], 0)

    monkeypatch.setattr(steps, "run_prepared", slow)
    outcome = run_night(make(budget={"hours": 1}))
    assert (outcome.state, outcome.exit_code) == ("failed", exit_codes.FAILED)
    assert "the budget was used up before the first shard was finished; give a larger budget" in outcome.message


def test_night_with_exhausted_samples_is_complete_with_its_own_code(make: Make, generated: Put) -> None:
    context = generated(make())
    night = NightFile(context.root, DATE).load()
    assert night is not None
    ended = run._NightRun(context)
    ended._file.load()
    ended._night = night.changed(samples=10, shards=6, attempts=40, exhausted=2, planned=12)
    outcome = ended._succeed()
    assert (outcome.state, outcome.exit_code) == ("complete", exit_codes.EXHAUSTED)
    assert outcome.message == "2 samples were rejected in every attempt and skipped."


def test_error_is_reported_although_its_record_cannot_be_written(
    make: Make, generated: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = generated(make())
    monkeypatch.setattr(run, "check_workers", raising(UserError("other versions")))
    monkeypatch.setattr(NightFile, "save", raising(StoreFullError("the disk is full")))
    outcome = run_night(context)
    assert outcome.message == "other versions"
    assert context.__dict__["messages"] == ["the record of the night could not be written: the disk is full"]


def test_record_that_another_driver_changed_is_not_overwritten(tmp_path: Path) -> None:
    root = Store(str(tmp_path))
    night = parse_night(record(DATE, "running"), "here")
    first, second = NightFile(root, DATE), NightFile(root, DATE)
    first.save(night)
    with pytest.raises(LeaseHeldError, match=r"another driver changed .*night\.json; this run stops"):
        second.save(night.changed(samples=1))
    root.put("latest.json", b"{")
    assert latest_night(root) is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StoreUnavailableError("the response was lost")])
@pytest.mark.parametrize("write", range(3))
def test_record_whose_write_was_interrupted_is_that_of_this_driver(
    error: BaseException, write: int, make: Make, generated: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The night could not be recorded: "another driver changed night.json", and it remained `running`."""
    context, swap, writes = generated(make()), Store.compare_and_swap, itertools.count()

    def interrupted(store: Store, name: str, *content: Any, **options: Any) -> bool:
        done = swap(store, name, *content, **options)
        if name.endswith("night.json") and next(writes) == write:
            raise error
        return done

    monkeypatch.setattr(Store, "compare_and_swap", interrupted)
    outcome = run_night(context)
    night = NightFile(context.root, DATE).load()
    assert night is not None
    expected = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    assert (outcome.state, night.state) == (expected, expected)
    assert not [message for message in context.__dict__["messages"] if "could not be written" in message]


def test_target_below_the_size_of_the_dataset_is_rejected(make: Make, finished_set: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_set, tmp_path / "nights/dataset", ignore=shutil.ignore_patterns("00000[2-5].json"))
    outcome = run_night(make(mode="grow", target=8, recipe={"seed": 20261125}))
    assert (outcome.state, outcome.exit_code) == ("failed", 2)
    assert "has n = 12, which is more than the target 8; a dataset cannot shrink" in outcome.message


def test_progress_of_another_command_is_not_counted(tmp_path: Path) -> None:
    """After the night was killed, somebody ran `generate` or `verify --repair` on its dataset."""
    night, dataset = parse_night(record(DATE, "running", counted=False, driver="abc"), "here"), Store(str(tmp_path))
    for driver, seconds in (("def", 0.0), ("abc", 60.0)):
        dataset.put("progress.json", json.dumps({"driver": driver, **dict.fromkeys(USAGE, 60.0)}).encode())
        assert with_lost_usage(night, dataset).seconds.get("generate", 0.0) == seconds


def test_usage_that_is_already_counted_or_invalid_is_not_counted(tmp_path: Path) -> None:
    night, dataset = parse_night(record(DATE, "running", counted=False, driver="abc"), "here"), Store(str(tmp_path))
    dataset.put("progress.json", json.dumps({"driver": "abc", **dict.fromkeys(USAGE, 60.0)}).encode())
    counted = night.changed(counted=True)
    assert with_lost_usage(counted, dataset) is counted
    for broken in ({"seconds": 60.0}, dict.fromkeys(USAGE, "soon"), dict.fromkeys(USAGE)):
        dataset.put("progress.json", json.dumps({"driver": "abc", **broken}).encode())
        assert with_lost_usage(night, dataset) is night


def test_summary_tells_new_samples_from_all() -> None:
    night = parse_night(record(DATE, "complete", samples=8, new_samples=3, gpu_hours=1.5, cost=3.0), "here")
    assert summary_of(night).startswith("8 of 12 samples, 3 of them new, ")
    assert summary_of(night).endswith("0:00:00, 1.50 GPU-hours, cost 3.00.")


def test_store_that_returns_deleted_files_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "delete", lambda store, name: None)
    with pytest.raises(UserError, match=r"still returns .* after it was deleted; give a store with strong consistency"):
        preflight.check_store(Store(str(tmp_path)), DATE)


def test_size_of_a_sample_is_estimated_if_the_model_cannot_be_read(tmp_path: Path) -> None:
    known = make_recipe({"n": 1, "generator": {"model": str(tmp_path), "width": 512, "height": 512}})
    assert estimated_size(make_recipe({"n": 1, "generator": {"model": str(tmp_path)}})) == estimated_size(known)
