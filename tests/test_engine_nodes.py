"""Nodes that die while workers start: this says nothing about the workers."""

from types import SimpleNamespace
from typing import Any

import pytest

from factory.config.sections import EngineRecipe
from factory.engine import outcomes
from factory.engine.health import FAILED_STARTS
from factory.engine.pool import Worker
from factory.engine.scheduler import Scheduler
from factory.engine.state import Listener
from factory.errors import RunFailedError

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
