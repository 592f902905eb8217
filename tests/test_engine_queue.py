"""Every shard is queued, in progress, finished or quarantined, and never two of these: without Ray and workers."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from factory.engine.interface import Done
from factory.engine.outcomes import Outcomes
from factory.engine.pool import Worker
from factory.engine.queue import MAX_ERRORS, MAX_LOSSES, ShardQueue
from factory.engine.state import Listener, State
from factory.errors import StoreUnavailableError

DONE = Done(4, 7, {"overlap": 3}, 1, {"generate": 2.0})


class WorkerError(Exception):
    """As Ray reports the loss of an actor."""


class TaskError(WorkerError):
    """As Ray wraps the error of a task."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


def order(queue: ShardQueue, beside_another: bool = False) -> list[int]:
    """The shards in the order in which workers get them."""
    return list(iter(lambda: queue.next(beside_another), None))


def test_failed_shards_come_last_and_interrupted_ones_first() -> None:
    queue = ShardQueue(range(4))
    assert [queue.next(False), queue.next(True)] == [0, 1]
    queue.failed(0)
    queue.put_back(1)
    assert order(queue) == [1, 2, 3, 0]


def test_shard_that_lost_a_worker_shares_no_worker_until_it_is_finished() -> None:
    queue = ShardQueue(range(3))
    for shard in order(queue)[:2]:
        (queue.lost, queue.lost_waiting)[shard](shard)
        assert queue.is_suspect(shard)
    queue.put_back(2)
    assert order(queue, beside_another=True) == [2]
    assert order(queue) == [1, 0]
    for shard in (0, 1):
        queue.done(shard)
        queue.put_back(shard)
    assert order(queue, beside_another=True) == [1, 0]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The results and errors of references that have resolved."""
    results: dict[str, Any] = {}

    def get(reference: str) -> Any:
        if isinstance(results[reference], Exception):
            raise results[reference]
        return results[reference]

    exceptions = SimpleNamespace(RayError=WorkerError, RayTaskError=TaskError)
    ray = SimpleNamespace(wait=lambda refs, timeout: ([r for r in refs if r in results], []), get=get)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(**vars(ray), exceptions=exceptions))
    return results


@pytest.fixture
def outcomes() -> Iterator[SimpleNamespace]:
    state, queue, quarantined = State(9), ShardQueue([]), list[int]()
    pool: Any = SimpleNamespace(fail=lambda worker: None, progressed=lambda: None)
    listener = Listener(quarantine=lambda shard, text: quarantined.append(shard))
    all_outcomes = Outcomes(pool, queue, state, listener, lambda: None)
    yield SimpleNamespace(of=all_outcomes, state=state, queue=queue)
    assert quarantined == state.quarantined


def lose(outcomes: Any, charged: bool, reported: tuple[int, ...] = ()) -> None:
    """Simulate the loss of a worker with shards 0 and 1, submitted in this order; some have `reported` progress."""
    counts = {shard: (1, dict[str, int]()) for shard in reported}
    worker = Worker(None, None, None, ready=True, shards={0: "zero", 1: "one"}, counts=counts)
    outcomes.of.replace(worker, "it died", charged)
    assert worker.shards == {}
    assert outcomes.state.lost == 1


def test_lost_worker_is_charged_to_the_shard_in_progress(outcomes: Any, ended: dict[str, Any]) -> None:
    lose(outcomes, charged=True)
    assert outcomes.queue.lost(0) == 2, "one loss before"
    assert outcomes.queue.lost(1) == 1, "it was waiting"
    assert order(outcomes.queue)[:2] == [1, 0]
    assert outcomes.state.requeued == 2


def test_lost_worker_is_charged_to_all_shards_that_reported_progress(outcomes: Any, ended: dict[str, Any]) -> None:
    lose(outcomes, charged=True, reported=(1,))
    assert [outcomes.queue.lost(shard) for shard in (0, 1)] == [2, 2]


def test_worker_that_is_replaced_for_another_reason_is_not_charged(outcomes: Any, ended: dict[str, Any]) -> None:
    lose(outcomes, charged=False, reported=(0, 1))
    assert order(outcomes.queue, beside_another=True) == [1, 0]
    assert [outcomes.queue.lost(shard) for shard in (0, 1)] == [1, 1]
    assert outcomes.state.requeued == 2


def test_result_that_came_before_the_loss_of_its_worker_counts_once(outcomes: Any, ended: dict[str, Any]) -> None:
    ended["zero"] = DONE
    lose(outcomes, charged=True, reported=(1,))
    assert order(outcomes.queue) == [1]
    state = outcomes.state
    assert (state.shards_done, state.accepted, state.attempts, state.requeued) == (1, 4, 7, 1)
    outcomes.of.done(1, DONE)
    assert (state.shards_done, state.exhausted, state.rejected) == (2, 2, {"overlap": 6})
    assert state.seconds == {"generate": 4.0}


@pytest.mark.parametrize(("end", "limit"), [(Outcomes.failed, MAX_ERRORS), (Outcomes.lost, MAX_LOSSES)])
def test_shard_is_either_queued_again_or_quarantined(outcomes: Any, end: Any, limit: int) -> None:
    for count in range(1, limit + 1):
        end(outcomes.of, 7, "reason")
        assert outcomes.state.quarantined == ([7] if count == limit else [])
        assert order(outcomes.queue) == ([] if count == limit else [7])


@pytest.mark.parametrize(
    ("error", "failures"),
    [
        (TaskError(ValueError("of the shard")), 1),
        (TaskError(StoreUnavailableError("not of the shard")), 0),
        (TaskError(WorkerError("of its detector")), 0),
        (WorkerError("of the worker"), 0),
    ],
)
def test_error_that_came_before_the_loss_of_its_worker_counts_as_one(
    outcomes: Any, ended: dict[str, Any], error: Exception, failures: int
) -> None:
    ended["zero"] = error
    lose(outcomes, charged=False)
    assert sorted(order(outcomes.queue)) == [0, 1]
    assert outcomes.queue.failed(0) == failures + 1
    assert outcomes.state.requeued == 2 - failures
