"""When a night ends: its budget, the target of mode `grow`, and shards or samples that cannot be made."""

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from factory.engine.state import State
from factory.errors import StoreUnavailableError
from factory.generation import run as generation_run
from factory.nightly import steps
from factory.nightly.record import NightFile, list_nights
from factory.nightly.run import run_night
from factory.nightly.steps import prepare_night, start_night
from tests.nightly.conftest import DATE, Make, Put, raising, record, states
from tests.support.datasets import make_dataset


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


@pytest.mark.parametrize(
    ("state", "exit_code", "continues"),
    [("failed", 75, True), ("interrupted", 143, True), ("failed", 2, False)],
)
def test_budget_starts_with_the_first_run_unless_somebody_corrected_an_error(
    state: str, exit_code: int, continues: bool, make: Make
) -> None:
    """A store that is unreachable until shortly after `until` must not give the night another day."""
    context = make(budget={"until": "06:00"})
    data = record(DATE, state, exit_code=exit_code, n=12)
    context.root.put(f"{DATE}/night.json", data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("factory.nightly.run.check_workers", raising(StoreUnavailableError("no answer")))
        assert run_night(context).exit_code == 75
    night = NightFile(context.root, DATE).load()
    assert night is not None
    assert (night.period.started.date() == DATE) is continues
    recipe, totals = prepare_night(context, night)
    assert start_night(context, night, recipe, totals).period == night.period


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
    assert "1 shard is quarantined after repeated errors: 0" in outcome.message


def test_night_without_any_sample_fails_with_a_code_that_no_scheduler_takes_for_success(make: Make) -> None:
    context = make(recipe={"n": 2, "attempts": 1, "filters": {"min_area": 0.999, "max_area": 1}})
    recipe, totals = prepare_night(context, None)
    NightFile(context.root, context.date).save(start_night(context, None, recipe, totals))
    make_dataset(recipe, Path(context.dataset.address))
    outcome = run_night(context)
    assert (outcome.state, outcome.exit_code) == ("failed", 3)
    assert "no sample of this night was accepted; attempts rejected by each filter" in outcome.message
