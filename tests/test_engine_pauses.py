"""A driver that was stopped for minutes (SIGSTOP, a frozen container) continues its run."""

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from factory.config.sections import EngineRecipe
from factory.engine import outcomes
from factory.engine.capacity import Share
from factory.engine.health import LONGEST_SILENCE
from factory.engine.pool import Worker
from factory.engine.scheduler import Scheduler
from factory.engine.state import Listener
from factory.engine.view import ClusterView


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


def make_view() -> ClusterView:
    capacity: Any = SimpleNamespace(current=lambda: (Share(1), 1))
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
    worker = Worker(None, None, None, ready=True, shards={0: None}, since=clock.now, alive=clock.now)
    pool: Any = SimpleNamespace(workers=[worker], detectors=[])
    late = list[str]()
    monkeypatch.setattr(outcomes.Outcomes, "failed", lambda self, shard, text: late.append(text))
    monkeypatch.setattr(outcomes.Outcomes, "replace", lambda self, worker, text, charged: None)
    ray = SimpleNamespace(wait=lambda references, timeout: ([], references))
    monkeypatch.setitem(sys.modules, "ray", ray)
    run = Scheduler(pool, [0], make_view(), EngineRecipe(deadline=60.0), Listener())
    clock.now += 600
    run._kill_late()
    assert late == []
    for _ in range(122):
        clock.now += 0.5
        run._kill_late()
    assert late == ["not finished within 60 s; its worker was killed"]
