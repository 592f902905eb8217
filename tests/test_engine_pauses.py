"""A driver that was stopped for minutes (SIGSTOP, a frozen container) continues its run."""

import signal
import sys
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from factory.config.sections import EngineRecipe
from factory.engine import outcomes
from factory.engine.capacity import ResourceRequest
from factory.engine.health import LONGEST_SILENCE
from factory.engine.pool import Worker
from factory.engine.queue import ShardQueue
from factory.engine.scheduler import Scheduler
from factory.engine.state import Limit, Listener
from factory.engine.view import ClusterView
from factory.errors import StoreUnavailableError


class WorkerError(Exception):
    """As Ray wraps the error of a task."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


def make_worker(host: str, clock: Any) -> Worker:
    where = {"host": host}
    return Worker(None, None, None, ready=True, shards={0: None}, where=where, since=clock.now, last_progress=clock.now)


def with_late_shards(monkeypatch: pytest.MonkeyPatch, progress: Any = None) -> list[str]:
    """The reasons for which workers are killed; `progress` is what workers report."""
    late = list[str]()
    monkeypatch.setattr(outcomes.Outcomes, "failed", lambda self, shard, text: late.append(text))
    monkeypatch.setattr(outcomes.Outcomes, "replace", lambda self, worker, text, charged: None)
    exceptions = SimpleNamespace(RayError=WorkerError)
    ray = SimpleNamespace(
        wait=lambda references, timeout: ([reference for reference in references if reference], references),
        get=lambda reference: progress,
        exceptions=exceptions,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    return late


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


def make_view() -> ClusterView:
    capacity: Any = SimpleNamespace(current=lambda: (ResourceRequest(1), 1))
    return ClusterView(capacity)


def test_head_node_is_not_silent_because_the_driver_was_stopped(clock: Any) -> None:
    view = make_view()
    clock.now += 600
    assert view.silent_for() == 0, "no response could arrive"
    for _ in range(int(LONGEST_SILENCE * 2) + 6):
        clock.now += 0.5
        silent = view.silent_for()
    assert silent > LONGEST_SILENCE, "from now on, it could"


def test_workers_are_not_late_because_everything_was_stopped(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool: Any = SimpleNamespace(workers=[make_worker("a", clock)], detectors=[])
    late = with_late_shards(monkeypatch)
    run = Scheduler(pool, [0], make_view(), EngineRecipe(deadline=60.0), Listener())
    clock.now += 600
    run._kill_late()
    assert late == []
    for _ in range(122):
        clock.now += 0.5
        run._kill_late()
    assert late == ["not finished within 60 s; its worker was killed"]


def test_worker_that_waits_for_the_store_is_not_late_although_the_driver_reaches_it(
    clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = ({}, "s3://b/x does not respond", None)
    late = with_late_shards(monkeypatch, reported)
    workers = [make_worker(host, clock) for host in ("a", "b", "c")]
    pool: Any = SimpleNamespace(workers=workers, detectors=[])
    run = Scheduler(pool, [0], make_view(), EngineRecipe(deadline=60.0), Listener())
    run._progress_requested = clock.now + 3600  # no new request: the worker is a fake
    for _ in range(122):
        clock.now += 0.5
        for worker in workers:
            worker.progress_call = worker is not workers[2]
        run._request_progress()
        run._kill_late()
    assert late == ["not finished within 60 s; its worker was killed"], "only the worker that does not wait is late"
    assert run.state.waiting == ""
    run._report()
    assert run.state.waiting_workers == "2 of 3 workers wait; on a: s3://b/x does not respond"


def test_workers_that_wait_for_the_same_hanging_detector_are_not_late_as_well(
    clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, restarted = with_late_shards(monkeypatch), list[Worker]()
    workers = [make_worker(host, clock) for host in ("a", "b", "c")]
    detectors = [Worker(None, None, None, ready=True, is_detector=True) for _ in range(2)]
    workers[0].detector, workers[1].detector = 1, 1
    pool: Any = SimpleNamespace(workers=workers, detectors=detectors, restart=restarted.append)
    run = Scheduler(pool, [0], make_view(), EngineRecipe(deadline=5.0), Listener())
    clock.now += 6
    run._kill_late()
    assert len(late) == 2, "those that waited for the detector first, and for nothing"
    assert [worker is detectors[1] for worker in restarted] == [True]


def test_samples_of_unfinished_shards_do_not_count_after_the_run(clock: Any) -> None:
    """They were lost with their workers: `progress.json` would otherwise promise more samples than the dataset has."""
    worker = make_worker("a", clock)
    worker.counts = {0: (7, {"overlap": 2})}
    pool: Any = SimpleNamespace(workers=[worker], detectors=[])
    run = Scheduler(pool, [], make_view(), EngineRecipe(), Listener(), Limit(lambda state: True))
    run._report()
    assert run.state.in_progress == {0: (7, {"overlap": 2})}
    assert run.run().limited
    assert run.state.in_progress == {}


def test_a_signal_that_arrives_with_the_last_shard_is_recorded(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Scheduler(cast(Any, SimpleNamespace(workers=[], detectors=[])), [0], make_view(), EngineRecipe(), Listener())

    def finish() -> None:
        run._queue = ShardQueue([])
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(run, "_size_pool", lambda: None)
    monkeypatch.setattr(run, "_submit", lambda: None)
    monkeypatch.setattr(run, "_step", finish)
    assert run.run().interrupted


def test_run_ends_when_no_worker_reaches_the_store(clock: Any) -> None:
    workers = [make_worker(host, clock) for host in ("a", "b")]
    pool = SimpleNamespace(workers=workers, detectors=[], complete=lambda worker, shard: None)
    run = Scheduler(cast(Any, pool), [], make_view(), EngineRecipe(), Listener())
    error = WorkerError(StoreUnavailableError("s3://b/x did not respond for 60 min"))
    for _ in range(3):
        run._shard_failed(workers[0], 0, error)  # the other worker may reach it
    assert run.state.requeued == 3
    with pytest.raises(StoreUnavailableError):
        run._shard_failed(workers[1], 0, error)
