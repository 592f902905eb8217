"""Nodes that die while workers start: this says nothing about the workers."""

from types import SimpleNamespace
from typing import Any

import pytest

from factory.config.sections import EngineRecipe
from factory.engine import outcomes
from factory.engine import view as view_module
from factory.engine.capacity import ResourceRequest
from factory.engine.health import FAILED_STARTS, SILENCE_REPORTED, Health
from factory.engine.pool import Worker
from factory.engine.scheduler import Scheduler
from factory.engine.state import Listener, State
from factory.engine.view import ClusterView
from factory.errors import RunFailedError, TransientError

LOST = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: ShardWorker\n\tip: 192.0.2.2\n"
    "The actor died because its node has died. Node Id: {}\n\tthe actor's node was terminated unexpectedly: health "
    "check failed due to missing too many heartbeats\nThe actor never ran - it was cancelled before it started running."
)


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    monkeypatch.setattr(outcomes.Outcomes, "replace", lambda self, worker, text, charged: None)
    pool: Any = SimpleNamespace(workers=[], detectors=[])
    view: Any = None
    return Scheduler(pool, range(9), view, EngineRecipe(), Listener())


def lose(scheduler: Scheduler, node: str, started: bool) -> None:
    worker = Worker(None, None, None, where={"host": "node-7"} if started else {})
    scheduler._lost(worker, RuntimeError(LOST.format(node)))


def test_workers_that_wait_for_a_node_that_dies_do_not_end_the_run(scheduler: Scheduler) -> None:
    for number in range(3 * FAILED_STARTS):
        lose(scheduler, f"{number % 3:056x}", started=False)
    assert len(scheduler.state.errors) == 3 * FAILED_STARTS


def test_all_workers_that_load_on_a_node_that_dies_are_one_failure(scheduler: Scheduler) -> None:
    for number in range(FAILED_STARTS - 1):
        for _ in range(4):
            lose(scheduler, f"{number:056x}", started=True)
    with pytest.raises(RunFailedError, match=f"failed {FAILED_STARTS} times in a row while loading"):
        lose(scheduler, "f" * 56, started=True)


def test_lost_worker_is_named_as_in_the_log_file_and_the_reason_ends_with_a_sentence(scheduler: Scheduler) -> None:
    where = {"host": "node-7", "ip": "10.0.0.7", "pid": "812"}
    reason = "The actor is dead because its worker process has died. Some common causes include: (1) "
    scheduler._lost(Worker(None, None, None, ready=True, where=where), RuntimeError(reason + 50 * "the OOM killer, "))
    assert list(scheduler.state.errors) == [
        "lost a worker on node-7 (process 812): RuntimeError: The actor is dead because its worker process has died."
    ]


def test_stopping_run_says_what_it_waits_for(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Health, "is_cut_off", lambda self: False)
    monkeypatch.setattr(scheduler, "_step", lambda: scheduler._pool.workers.clear())
    scheduler._drain()
    assert not scheduler.state.errors, "it waits for nothing"
    scheduler._pool.workers.append(Worker(None, None, None, shards={0: None}))
    scheduler._drain()
    assert list(scheduler.state.errors) == [
        "stopping: waiting up to 20 s for 1 shard in progress; a second signal stops immediately"
    ]


def test_local_ray_that_does_not_respond_is_not_called_a_cluster() -> None:
    view: Any = SimpleNamespace(silent_for=lambda: SILENCE_REPORTED + 1, own_node_died=False)
    pool: Any = None
    for address, name in (
        (None, "Ray on this machine"),
        ("head:6379", "the head node of the Ray cluster at head:6379"),
    ):
        state, engine = State(1), EngineRecipe(address=address)
        Health(pool, view, engine, state).check_head()
        assert state.errors[0].startswith(f"{name} does not respond; waiting up to ")


def test_run_ends_if_the_node_of_the_driver_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head node still responds, so without this check the run would wait for workers forever."""
    monkeypatch.setattr(view_module, "own_node", lambda: "own")
    capacity: Any = SimpleNamespace(current=lambda: (ResourceRequest(1), 1), nodes=["own", "other"])
    pool: Any = SimpleNamespace(abandon=lambda: None)
    with ClusterView(capacity) as view:
        health = Health(pool, view, EngineRecipe(), State(1))
        health.check_head()
        capacity.nodes = ["other"]
        with pytest.raises(TransientError, match="Ray on this machine has died"):
            health.check_head()
