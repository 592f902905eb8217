"""Snapshots count earlier runs, this run, and shards in progress."""

import json
from collections import Counter
from pathlib import Path

import pytest

import factory.generation.run
from factory import exit_codes
from factory.cli.generate import as_text
from factory.cli.status import state as state_of
from factory.cli.view import _Lines, one_line
from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.description import write_description
from factory.dataset.lease import leased
from factory.dataset.receipts import receipt_name
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import init_or_resume
from factory.dataset.totals import Totals
from factory.engine.interface import Done
from factory.engine.state import State
from factory.generation.progress import Snapshot, Tracker
from factory.generation.reporter import quarantined
from factory.generation.run import run_prepared
from tests.support.in_process import output
from tests.support.receipts import receipt


def test_snapshot_sums_earlier_finished_and_current_shards() -> None:
    before = Totals(shards=2, accepted=38, planned=40, exhausted=2)
    tracker, state = Tracker(Plan(make_recipe({"n": 100, "shard_size": 30})), (1, 2), before), State(2)
    state.add(Done(accepted=29, attempts=40, rejected={"mask_small": 11}, exhausted=1))
    state.in_progress = {2: (7, {"mask_small": 2, "overlap": 1})}
    state.report("lost a worker")
    snapshot = tracker.snapshot(state)
    assert (snapshot.accepted, snapshot.n) == (38 + 29 + 7, 100)
    assert (snapshot.shards_done, snapshot.shards) == (3, 4)
    assert Counter(snapshot.rejected) == {"mask_small": 13, "overlap": 1}
    assert snapshot.errors == ["lost a worker"]
    assert one_line(snapshot).startswith("running: 74/100 accepted")


def test_progress_line_omits_what_is_not_known_or_over() -> None:
    before = Totals(shards=4, accepted=100)
    tracker, state = Tracker(Plan(make_recipe({"n": 100, "shard_size": 30})), (), before), State(2)
    assert one_line(tracker.snapshot(state, "done")) == "done: 100/100 accepted, 4/4 shards, rejected 0"
    assert one_line(tracker.snapshot(state, "starting")) == "starting: 100/100 accepted, 4/4 shards, rejected 0"
    state.workers, state.pending_workers = 1, 2
    line = "running: 100/100 accepted, 4/4 shards, 1 worker and 2 starting, rejected 0"
    assert one_line(tracker.snapshot(state)) == line


def test_remaining_time_is_that_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A night generates a part of a dataset, and shards in quarantine are not generated again in the same run."""
    clock = [1000.0]
    monkeypatch.setattr("factory.generation.progress.time.monotonic", lambda: clock[0])
    tracker, state = Tracker(Plan(make_recipe({"n": 110_000, "shard_size": 30})), range(5, 8)), State(3)
    clock[0] += 10
    state.add(Done(accepted=20, attempts=40, exhausted=10))
    assert tracker.snapshot(state).seconds_left == 60 / 3, "skipped samples take time, too"
    state.quarantined.append(6)
    assert tracker.snapshot(state).seconds_left == 30 / 3


def test_samples_that_earlier_runs_skipped_are_not_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run counts the samples of its dataset, as `factory status` does, and not those that were planned."""
    recipe, store, seen = make_recipe({"n": 12, "shard_size": 4}), Store(str(tmp_path)), list[Snapshot]()
    init_or_resume(store, recipe)
    store.put("receipts/000001.json", receipt(1, accepted=3, planned=4, recipe=recipe.fingerprint()))

    def interrupted(recipe: Recipe, store: Store, todo: list[int], tracker: Tracker, *_: object) -> State:
        seen.append(tracker.snapshot(State(len(todo))))
        raise KeyboardInterrupt

    monkeypatch.setattr(factory.generation.run, "_run", interrupted)
    with leased(store) as held, pytest.raises(KeyboardInterrupt):
        run_prepared(recipe, store, held)
    assert [(snapshot.accepted, snapshot.shards_done) for snapshot in seen] == [(3, 1)]
    assert state_of(str(tmp_path))["samples"] == 3
    assert store.get("index/000000.json") is not None, "so that the end of the run need not read the receipts again"


@pytest.mark.parametrize("lost", [False, True])
def test_dataset_with_shards_to_generate_is_not_called_complete(
    lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extension or the repair of a complete dataset takes hours, and may be interrupted."""
    recipe, store = make_recipe({"n": 8, "shard_size": 4}), Store(str(tmp_path))
    init_or_resume(store, recipe)
    for number in range(2):
        store.put(receipt_name(number), receipt(number, recipe=recipe.fingerprint()))
    write_description(store, recipe)
    if lost:
        store.delete(receipt_name(1))

    def interrupted(*_: object) -> State:
        raise KeyboardInterrupt

    monkeypatch.setattr(factory.generation.run, "_run", interrupted)
    with leased(store) as held, pytest.raises(KeyboardInterrupt):
        run_prepared(recipe if lost else recipe.model_copy(update={"n": 12}), store, held, extend=True)
    about = json.loads(store.get("dataset.json") or b"")
    assert (about["complete"], about["samples"], about["n"]) == (False, *((4, 8) if lost else (8, 12)))
    assert f"| samples | {about['samples']} of {about['n']}," in (store.get("README.md") or b"").decode()


def test_every_error_is_printed_even_if_several_are_equal_or_occur_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A node that dies takes many workers with it; the log of a night is all that is left of it."""
    tracker, state, lines = Tracker(Plan(make_recipe({"n": 100})), ()), State(1), _Lines()
    for count in (1, 12, 0, 1):
        for _ in range(count):
            state.report("lost a worker on node-7: its node has died")
        lines.show(tracker.snapshot(state))
    assert capsys.readouterr().err.count("  lost a worker on node-7: its node has died\n") == 14
    assert tracker.snapshot(state).to_dict()["errors"] == ["lost a worker on node-7: its node has died"] * 5
    assert tracker.snapshot(state).to_dict()["errors_total"] == 14


def test_state_stores_sums_only() -> None:
    state = State(10_000)
    for _ in range(10_000):
        state.add(Done(accepted=5, attempts=6, rejected={"overlap": 1}, seconds={"generate": 0.5}))
    assert (state.accepted, state.attempts, state.rejected["overlap"]) == (50_000, 60_000, 10_000)
    assert state.seconds == {"generate": 5_000.0}
    assert not any(isinstance(value, list) and len(value) > 50 for value in vars(state).values())


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (State(4), exit_codes.TRY_AGAIN),
        (State(4, quarantined=[1]), exit_codes.FAILED),
        (State(4, limited=True), exit_codes.DONE),
    ],
)
def test_a_run_without_all_receipts_is_not_complete(
    state: State, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code follows from the receipts that exist at the end, whatever the workers reported."""
    monkeypatch.setattr(factory.generation.run, "_run", lambda *_: state)
    store = Store(str(tmp_path))
    with leased(store) as held:
        summary = run_prepared(make_recipe({"n": 100, "shard_size": 30}), store, held)
    assert summary.exit_code == code
    assert ("4 shards are missing" in as_text(summary, "out")) is (code == exit_codes.TRY_AGAIN)


def test_shard_that_a_lost_worker_has_finished_leaves_quarantine(tmp_path: Path) -> None:
    """The next run does not generate it again, and would otherwise leave its error there forever."""
    recipe, store = make_recipe({"n": 8, "shard_size": 4}), Store(str(tmp_path))
    init_or_resume(store, recipe)
    for number in range(2):
        store.put(receipt_name(number), receipt(number, recipe=recipe.fingerprint()))
    store.put("quarantine/000001.json", b"{}")
    with leased(store) as held:
        summary = run_prepared(recipe, store, held)
    assert (summary.exit_code, quarantined(store)) == (exit_codes.DONE, set())


def test_status_of_an_active_run_does_not_ask_for_another_one(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    init_or_resume(store, make_recipe({"n": 8, "shard_size": 4}))
    for number in range(12):
        store.put(f"quarantine/{number:06d}.json", b"{}")
    with leased(store):
        last = output("status", tmp_path).splitlines()[-1]
    names = ", ".join(map(str, range(10)))
    assert last == f"Quarantined shards: {names} and 2 more; see quarantine/."
