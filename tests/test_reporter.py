"""Reports of a driver never stop or delay a run; the run pauses while its store does not respond."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from factory.config.plan import Plan
from factory.config.recipe import make_recipe
from factory.dataset import lease
from factory.dataset.lease import HeldLease, leased
from factory.dataset.progress_file import put_progress, read_progress
from factory.dataset.storage import Store
from factory.dataset.storage_requests import Requests
from factory.engine.interface import Done
from factory.engine.state import State
from factory.errors import LeaseHeldError
from factory.files.strict_json import canonical
from factory.generation.progress import Snapshot, Tracker
from factory.generation.reporter import Reporter, quarantined
from tests.support.bucket import Bucket, Fault
from tests.support.receipts import receipt

SHARDS = 40


@pytest.fixture
def store(bucket: Bucket) -> Store:
    store = Store("s3://b/set")
    for number in range(SHARDS):
        bucket.put(f"b/set/receipts/{number:06d}.json", receipt(number))
    store.put("quarantine/000003.json", b"{}")
    return store


def reporter_of(store: Store, held: HeldLease, seen: list[Snapshot]) -> tuple[Reporter, Tracker]:
    tracker = Tracker(Plan(make_recipe({"n": 4 * SHARDS, "shard_size": 4})), range(SHARDS))
    return Reporter(store, tracker, seen.append, held, quarantined(store)), tracker


def run(store: Store, held: HeldLease) -> State:
    """Forty finished shards, one of which was quarantined before, and one that is quarantined now."""
    reporter, tracker = reporter_of(store, held, [])
    listener, state = reporter.as_listener(), State(SHARDS)
    for number in range(SHARDS):
        state.add(Done(4, 6))
        listener.finished(number)
        listener.tick(state)
    listener.quarantine(7, "Traceback: the key is test-secret-key")
    reporter.drain()
    reporter.close(tracker.snapshot(state, "done"))
    return state


def test_progress_quarantine_and_index_are_written(bucket: Bucket, store: Store) -> None:
    with leased(store) as held:
        bucket.requests.clear()
        run(store, held)
    assert json.loads(store.get("progress.json") or b"{}")["status"] == "done"
    assert quarantined(store) == {7}
    assert "the key is ***" in json.loads(store.get("quarantine/000007.json") or b"{}")["error"]
    assert len(json.loads(store.get("index/000000.json") or b"{}")) == SHARDS
    assert bucket.requests["GET"] <= SHARDS + 7, "one per receipt, none for shards that were never quarantined"


def test_failed_writes_of_reports_are_ignored(bucket: Bucket, store: Store) -> None:
    bucket.faults[:] = [
        Fault("status", "(PUT|GET) .*(progress|quarantine|index)", times=None, code=403, chance=0.7),
        Fault("status", "PUT .*(progress|quarantine|index)", times=None, code=507),
    ]
    with leased(store) as held:
        assert run(Store("s3://b/set"), held).shards_done == SHARDS


def test_slow_store_does_not_delay_the_scheduler(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store responds to no request before the scheduler has reported everything."""
    responds, in_time, request = threading.Event(), list[bool](), Requests.run

    def respond(self: Requests, *arguments: Any, **options: Any) -> Any:
        in_time.append(responds.wait(20))
        responds.set()  # once is enough
        return request(self, *arguments, **options)

    with leased(store) as held:
        reporter, tracker = reporter_of(store, held, [])
        monkeypatch.setattr(Requests, "run", respond)
        for number in range(SHARDS):
            reporter.finished(number)
            reporter.quarantine(number, "late")
            reporter.tick(State(SHARDS))
        responds.set()
        reporter.drain()
        reporter.close(tracker.snapshot(State(SHARDS), "failed"))
    assert len(in_time) > SHARDS
    assert all(in_time), "the scheduler waited for a response"


def test_late_progress_does_not_replace_that_of_the_finished_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.generation.reporter._CLOSE_TIMEOUT", 0.1)
    state, sent, release, put = State(SHARDS), threading.Event(), threading.Event(), Store.put

    def fail_late(*arguments: object) -> None:
        sent.set()
        release.wait(10)

    with leased(store) as held:
        reporter, tracker = reporter_of(store, held, [])
        monkeypatch.setattr(Store, "put", fail_late)
        reporter.tick(state)
        assert sent.wait(10)
        reporter.close(tracker.snapshot(state, "finishing"))
        monkeypatch.setattr(Store, "put", put)
        put_progress(store, {"status": "done"})
        release.set()
        reporter._writer._thread.join(10)
    assert read_progress(store) == {"status": "done"}


def test_progress_is_written_although_an_earlier_one_is_written_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The background thread may take the earlier progress at any moment while the next one is prepared."""
    monkeypatch.setattr("factory.generation.reporter._PROGRESS_EVERY", 0.0)
    state, actions = State(SHARDS), list[Callable[[], Any]]()
    with leased(store) as held:
        reporter, tracker = reporter_of(store, held, [])
        monkeypatch.setattr(reporter._writer, "do", actions.append)
        reporter.tick(state)
        monkeypatch.setattr(
            "factory.generation.reporter.canonical", lambda data: (actions and actions.pop(0)(), canonical(data))[1]
        )
        for _ in range(2):
            state.add(Done(4, 6))
            reporter.tick(state)
        for action in actions:
            action()
        reporter.close(tracker.snapshot(state, "done"))
    assert read_progress(store)["accepted"] == 8


def test_run_waits_while_its_store_does_not_respond(
    bucket: Bucket, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.dataset.storage_retry._WARN_AFTER", 0.2)
    seen, state = list[Snapshot](), State(SHARDS)
    with leased(store) as held:
        reporter, tracker = reporter_of(store, held, seen)
        bucket.faults[:] = [Fault("outage", times=None, seconds=60)]
        call = threading.Thread(target=store.get, args=("recipe.yaml",))
        call.start()
        while call.is_alive() and not state.waiting:
            time.sleep(0.05)
            reporter.tick(state)
        assert "s3://b/set does not respond" in state.waiting
        assert seen[-1].status == "waiting"
        bucket.faults.clear()
        call.join()
        reporter.tick(state)
        assert (state.waiting, seen[-1].status) == ("", "running")
        reporter.close(tracker.snapshot(state, "done"))


def test_store_that_responds_to_the_driver_and_not_to_workers_is_reported_once(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.generation.reporter._WORKERS_WAIT", 0.0)
    state = State(SHARDS)
    with leased(store) as held:
        reporter, tracker = reporter_of(store, held, [])
        state.waiting_workers = "1 of 2 workers waits; on a: s3://b/set does not respond"
        for _ in range(3):
            reporter.tick(state)
        assert caplog.messages == [state.waiting_workers]
        state.waiting_workers = ""
        for _ in range(2):
            reporter.tick(state)
        assert caplog.messages[1:] == ["s3://b/set responds to all workers again."]
        reporter.close(tracker.snapshot(state, "done"))


def is_lost(held: HeldLease) -> bool:
    try:
        held.check()
    except LeaseHeldError:
        return True
    return False


def test_driver_that_lost_its_lease_stops_and_writes_no_progress(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    with leased(store) as held:
        reporter, tracker = reporter_of(store, held, [])
        with leased(store, force=True):
            store.put("progress.json", b"of the other")
            deadline = time.monotonic() + 30
            while not is_lost(held) and time.monotonic() < deadline:  # until the next heartbeat
                time.sleep(0.05)
            with pytest.raises(LeaseHeldError):
                reporter.tick(State(SHARDS))
            reporter.close(tracker.snapshot(State(SHARDS), "failed"))
            assert store.get("progress.json") == b"of the other"


def test_speed_is_that_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("factory.generation.progress.time.monotonic", lambda: clock[0])
    tracker, state = Tracker(Plan(make_recipe({"n": 1000})), range(10)), State(10)
    speeds = []
    for accepted in (100, 220, 230, 230):
        clock[0] += 50
        state.accepted = accepted
        snapshot = tracker.snapshot(state)
        speeds.append((snapshot.per_second, snapshot.seconds_left))
    assert speeds == [(2.0, 450.0), (2.4, 325.0), (0.2, 3850.0), (0.0, None)]
