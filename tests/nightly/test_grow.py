"""Mode `grow`: nights that share a dataset count only their own samples, also if they are repeated or killed."""

import datetime
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factory import exit_codes
from factory.cli.nightly import _preview_text, nights_of
from factory.config.recipe import Recipe
from factory.dataset import lease
from factory.dataset.lease import LEASE, HeldLease, Lease, leased
from factory.dataset.receipts import Blob, Receipt
from factory.dataset.storage import Store
from factory.engine.state import State
from factory.generation import run as generation_run
from factory.generation.progress import Tracker
from factory.generation.reporter import Watch
from factory.nightly import run
from factory.nightly.context import NightContext
from factory.nightly.outcome import Outcome
from factory.nightly.record import Night, NightFile
from factory.nightly.run import preview_night, run_night
from tests.nightly.conftest import DATE, Make, record

NEXT = DATE + datetime.timedelta(days=1)
FIELDS: dict[str, Any] = {"mode": "grow", "target": 12, "recipe": {"seed": 20261125, "n": 8}}

PARTS = {"recipe": {"seed": 20261125, "n": 4}}
"""Nights of two shards."""

Grow = Callable[..., Outcome]


class KilledError(BaseException):
    """Ends a run at once, like SIGKILL."""


def receipt(shard: int, recipe: Recipe, skipped: int = 0) -> bytes:
    """A shard of two samples, one of which took two attempts, or of which some were rejected in every attempt."""
    indices = tuple(range(2 * shard, 2 * shard + skipped))
    blobs = Blob(f"train/{shard:06}.tar", "0" * 64, 1000), Blob(f"manifest/{shard:06}.parquet", "0" * 64, 100)
    return Receipt(
        shard,
        recipe.fingerprint(),
        "0" * 64,
        *blobs,
        2,
        2 - skipped,
        3,
        {"mask_small": 1 + skipped},
        indices,
        {},
        {},
        {},
    ).to_json()


@pytest.fixture
def grow(make: Make, monkeypatch: pytest.MonkeyPatch) -> Grow:
    """Runs a night that commits some shards and then ends at its limit, or with an error."""
    monkeypatch.setattr(run, "verify_night", lambda context, night: night)
    monkeypatch.setattr(run, "write_night_report", lambda *_: None)

    def night(
        date: datetime.date,
        shards: int,
        error: BaseException | None = None,
        skipped: int = 0,
        deleted: int = 0,
        **fields: Any,
    ) -> Outcome:
        def generate(
            recipe: Recipe,
            store: Store,
            todo: list[int],
            tracker: Tracker,
            watch: Watch,
            held: HeldLease,
            limit: object,
        ) -> State:
            state = State(len(todo), gpu_seconds=3600.0 * shards, limited=shards < len(todo))
            for shard in todo[: shards - deleted]:
                store.put(f"receipts/{shard:06}.json", receipt(shard, recipe, skipped))
            watch(tracker.snapshot(state))
            progress = {**tracker.snapshot(state).to_dict(), "driver": held.holder}
            store.put("progress.json", json.dumps(progress).encode())
            if error is not None:
                raise error
            return state

        monkeypatch.setattr(generation_run, "_run", generate)
        return run_night(make(date=date, **{**FIELDS, **fields}))

    return night


def kill(grow: Grow, date: datetime.date, shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a night whose driver is killed after some shards: it writes nothing more, and leaves its lease behind."""
    here = lease.process_identity(os.getpid()).rpartition("/")[0]
    with monkeypatch.context() as patch:
        patch.setattr("factory.nightly.steps.with_usage", lambda night, *_: night)
        patch.setattr(lease, "process_identity", lambda pid: f"{here}/0")
        patch.setattr(lease.HeldLease, "release", lambda held: held._released.set())
        with pytest.raises(KilledError):
            grow(date, shards, KilledError())


def saved(context: NightContext, date: datetime.date) -> Night:
    night = NightFile(context.root, date).load()
    assert night is not None
    return night


def counts(night: Night | None) -> tuple[int, int, str]:
    assert night is not None
    return night.new_samples, night.samples, night.state


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_repeated_night_does_not_count_the_samples_of_later_ones(error: BaseException | None, grow: Grow) -> None:
    first = "partial" if error is None else "interrupted"
    assert counts(grow(DATE, 1, error).night) == (2, 2, first)
    assert counts(grow(NEXT, 2).night) == (4, 6, "partial")
    outcome = grow(DATE, 2)
    assert counts(outcome.night) == (6, 10, "partial")
    assert outcome.night is not None
    assert outcome.night.accepted_share == round(6 / outcome.night.attempts, 4)
    assert counts(grow(DATE, 9).night) == (8, 12, "complete"), "its part is the 8 samples of the recipe"


def test_samples_and_use_of_a_killed_night_are_its_own(grow: Grow, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next night of the dataset completes the record; without one, the next run of the killed night does."""
    context = make(**FIELDS)
    kill(grow, DATE, 1, monkeypatch)
    assert counts(saved(context, DATE)) == (0, 0, "running")
    outcome = grow(NEXT, 2)
    assert (counts(outcome.night), outcome.night and outcome.night.gpu_hours) == ((4, 6, "partial"), 2)
    killed = saved(context, DATE)
    assert (counts(killed), killed.gpu_hours, killed.attempts > 0) == ((2, 2, "interrupted"), 1, True)
    kill(grow, DATE, 1, monkeypatch)
    outcome = grow(DATE, 1)
    assert (counts(outcome.night), outcome.night and outcome.night.gpu_hours) == ((6, 10, "partial"), 3)


def test_killed_night_is_interrupted_while_a_later_one_works_on_the_dataset(
    grow: Grow, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make(**FIELDS)
    kill(grow, DATE, 1, monkeypatch)
    data = {**json.loads(context.dataset.get(LEASE) or b""), "place": lease.process_identity(os.getpid())}
    context.dataset.put(LEASE, Lease(**data).to_json())
    assert [night["state"] for night in nights_of(context.root)] == ["running"]
    context.dataset.put(LEASE, Lease(**{**data, "started": "2099-01-01T00:00:00+00:00"}).to_json())
    assert [night["state"] for night in nights_of(context.root)] == ["interrupted"]
    context.dataset.delete(LEASE)
    assert [night["state"] for night in nights_of(context.root)] == ["stale"]
    states = list[list[str]]()

    def look(context: NightContext, night: Night) -> Night:
        states.append([night["state"] for night in nights_of(context.root)])
        return night

    monkeypatch.setattr(run, "verify_night", look)
    grow(NEXT, 1)
    assert states == [["interrupted", "running"]]


def test_records_of_earlier_versions_that_still_say_running(make: Make) -> None:
    context = make(**FIELDS)
    for date, hour in ((DATE, 21), (NEXT, 22)):
        stamp = f"2099-11-25T{hour}:00:00Z"
        data = record(date, "running", mode="grow", dataset="dataset", updated=stamp, runs=1)
        context.root.put(f"{date}/night.json", data)
    with leased(context.dataset):
        assert [night["state"] for night in nights_of(context.root)] == ["interrupted", "running"]


def test_dry_run_of_an_unfinished_night_after_the_target_was_reached(grow: Grow, make: Make) -> None:
    """A run would verify and export it again and record it as complete."""
    grow(DATE, 1)
    assert counts(grow(NEXT, 9, recipe={"seed": 20261125, "n": 10}).night) == (10, 12, "complete")
    fields = {**FIELDS, "recipe": {"seed": 20261125, "n": 10}}
    assert preview_night(make(date=DATE, **fields))["action"] == "continue"
    later = preview_night(make(date=NEXT + datetime.timedelta(days=1), **fields))
    assert later["action"] == "nothing"
    assert "is complete" not in _preview_text(later), "there is no such night"
    assert counts(grow(DATE, 9, recipe=fields["recipe"]).night) == (2, 12, "complete")


def test_night_whose_dataset_was_deleted_starts_again(grow: Grow, make: Make, tmp_path: Path) -> None:
    grow(DATE, 2)
    assert counts(grow(NEXT, 1).night) == (2, 6, "partial")
    shutil.rmtree(tmp_path / "nights/dataset")
    assert counts(grow(NEXT, 9).night) == (8, 8, "complete")


def test_night_does_not_report_the_skipped_samples_of_earlier_ones(grow: Grow) -> None:
    first, second = grow(DATE, 2, skipped=1, **PARTS), grow(NEXT, 2, **PARTS)
    assert (first.state, first.exit_code) == ("complete", exit_codes.EXHAUSTED)
    assert first.message == "2 samples were rejected in every attempt and skipped."
    assert (second.state, second.exit_code) == ("complete", exit_codes.DONE)
    assert second.message == "All samples of the night are generated and verified."


@pytest.mark.parametrize("limited", [False, True])
def test_night_without_an_accepted_sample_fails_whatever_earlier_nights_made(limited: bool, grow: Grow) -> None:
    """As with a broken GPU, whose images are blank."""
    grow(DATE, 2, **PARTS)
    outcome = grow(NEXT, 1 if limited else 2, skipped=2, **PARTS)
    assert (outcome.state, outcome.exit_code) == ("failed", exit_codes.FAILED)
    assert outcome.message.startswith("no sample of this night was accepted; attempts rejected by each filter")


@pytest.mark.parametrize("earlier", [0, 2])
def test_night_whose_receipts_were_deleted_has_not_used_up_its_budget(earlier: int, grow: Grow) -> None:
    """The next run of the night generates these shards again."""
    if earlier:
        grow(DATE, earlier, **PARTS)
    outcome = grow(NEXT, 2, deleted=1, **PARTS)
    assert (outcome.state, outcome.exit_code) == ("failed", exit_codes.TRY_AGAIN)
    assert outcome.message.startswith("1 shard is missing: receipts were deleted during the run")
    assert counts(grow(NEXT, 1, **PARTS).night) == (4, 4 + 2 * earlier, "complete")
