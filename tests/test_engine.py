"""The engine with jobs that sleep, fail, hang and crash: every shard is produced, and none is quarantined too early."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from factory.config.sections import EngineRecipe
from factory.engine import deadlines, health
from factory.engine.capacity import Capacity, ResourceRequest
from factory.engine.cluster import connected
from factory.engine.deadlines import Deadlines
from factory.engine.pool import Pool, Worker
from factory.engine.scheduler import Scheduler
from factory.engine.state import Limit, Listener, State
from factory.engine.usage import Usage
from factory.engine.view import ClusterView
from factory.engine.worker import STARTING
from factory.errors import GpuError, RunFailedError, UserError
from tests.support.jobs import AskingJob, RefusingJob, SleepingJob
from tests.support.program import PROGRAM


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with connected(EngineRecipe(workers=3), threads=1):
        yield


def run(
    job: SleepingJob,
    shards: int,
    listener: Listener | None = None,
    detectors: int = 0,
    limit: Limit | None = None,
    **engine: Any,
) -> State:
    recipe = EngineRecipe(**{"workers": 2, **engine})
    with ClusterView(Capacity(recipe, threads=1)) as view:
        pool = Pool(job, ResourceRequest(1), detectors)
        try:
            return Scheduler(pool, range(shards), view, recipe, listener or Listener(), limit).run()
        finally:
            pool.close()


@pytest.mark.usefixtures("ray_here")
def test_local_run_requests_as_many_workers_as_fit() -> None:
    """Nothing can scale; the requested workers were once doubled."""
    assert Capacity(EngineRecipe(), threads=1).current() == (ResourceRequest(1), 3)


def times(folder: Path, mark: str, shard: int) -> int:
    path = folder / f"{mark}-{shard}"
    return len(path.read_text()) if path.exists() else 0


@pytest.mark.usefixtures("ray_here")
def test_every_shard_is_produced_once(tmp_path: Path) -> None:
    state = run(SleepingJob(str(tmp_path)), 20)
    assert [times(tmp_path, "done", shard) for shard in range(20)] == [1] * 20
    assert (state.shards_done, state.accepted, state.lost, state.requeued) == (20, 20, 0, 0)


def test_last_shards_are_not_assigned_as_second_shards(tmp_path: Path) -> None:
    pool = Pool(SleepingJob(str(tmp_path)), ResourceRequest(1))
    idle, busy, full, loading = (Worker(name, None, None, ready=True) for name in ("idle", "busy", "full", "loading"))
    busy.shards, full.shards, loading.ready = {0: None}, {1: None, 2: None}, False

    def free(workers: list[Worker], queued: int) -> list[str]:
        pool.workers = workers
        return [worker.handle for worker in pool.free(queued)]

    assert free([full, busy, idle], queued=4) == ["idle", "busy", "idle"], (
        "enough shards: every ready actor may take a second one"
    )
    assert free([full, busy, idle], queued=3) == ["idle"], "otherwise fewer would be left than there are actors"
    assert free([idle, loading], queued=2) == ["idle"], "the other shard is for the loading actor"
    assert free([idle, loading], queued=3) == ["idle", "idle"]


@pytest.mark.usefixtures("ray_here")
def test_shards_of_a_dead_worker_are_requeued(tmp_path: Path) -> None:
    state = run(SleepingJob(str(tmp_path), dying=frozenset({1, 4})), 8)
    assert all(times(tmp_path, "done", shard) >= 1 for shard in range(8))
    assert state.shards_done == 8
    assert state.lost == 2
    assert any("lost a worker" in line for line in state.errors)


@pytest.mark.usefixtures("ray_here")
def test_shard_that_kills_every_worker_is_quarantined_and_others_finish(tmp_path: Path) -> None:
    errors, logs = dict[int, str](), list[str]()
    listener = Listener(quarantine=errors.__setitem__, logs=logs.append)
    state = run(SleepingJob(str(tmp_path), poisonous=frozenset({1})), 8, listener)
    assert (state.quarantined, state.shards_done) == ([1], 7)
    # A sixth try is possible on a busy machine: a loss counts only if the driver knows that this shard had started.
    assert times(tmp_path, "tried", 1) in (5, 6)
    assert "its worker was lost (5 of 5 times)" in errors[1]
    assert "shard 1 takes all memory" in errors[1], "the output of the dead worker is kept"
    assert "shard 1 takes all memory" in logs[-1]


@pytest.mark.usefixtures("ray_here")
def test_shard_finished_before_its_worker_died_is_not_repeated(tmp_path: Path) -> None:
    """A busy driver sees the loss and the result at the same time, the loss first."""

    def tick(state: State) -> None:
        while (tmp_path / "tried-0").exists() and not (tmp_path / "died-0").exists():
            time.sleep(0.1)
        time.sleep(0.3)

    job = SleepingJob(str(tmp_path), writing=1.0, dying_late=frozenset({0}))
    state = run(job, 4, Listener(tick=tick), workers=1)
    assert (state.shards_done, state.lost) == (4, 1)
    assert [times(tmp_path, "done", shard) for shard in range(4)] == [1] * 4


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("start", ["raise", "die"])
def test_detector_pool_that_cannot_start_ends_the_run(tmp_path: Path, start: str) -> None:
    job = AskingJob(str(tmp_path), start=start)
    with pytest.raises(RunFailedError, match="the detector workers cannot start: they failed repeatedly"):
        run(job, 3, workers=1, detectors=1)


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    ("start", "message"), [("hang", "loading did not finish within 1 s"), ("die", "worker process has died")]
)
def test_workers_that_never_become_ready_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, message: str
) -> None:
    monkeypatch.setattr(health, "FAILED_STARTS", 2)
    with pytest.raises(RunFailedError, match=f"failed 2 times in a row while loading, most recently with: .*{message}"):
        run(SleepingJob(str(tmp_path), start=start), 3, workers=1, load_deadline=1.0)


def test_worker_without_progress_for_an_hour_is_late() -> None:
    now, hour = time.monotonic(), deadlines._FIRST_SILENCE
    silent = Worker(None, None, None, ready=True, shards={0: None}, since=now - hour - 1, last_progress=now - hour - 1)
    busy = Worker(None, None, None, ready=True, shards={0: None}, since=now - hour - 1, last_progress=now - 5)
    waiting = Worker(None, None, None, since=0.0)
    late = Deadlines(EngineRecipe())
    assert "no progress for 3600 s" in str(late.exceeded(silent))
    assert late.exceeded(busy) is None
    assert late.exceeded(waiting) is None, "a pending actor is not late"
    for _ in range(3):
        late.complete(100.0)
    assert "not finished within 1000 s" in str(late.exceeded(busy))


@pytest.mark.usefixtures("ray_here")
def test_sigterm_lets_shards_in_progress_finish_within_the_grace_period(tmp_path: Path) -> None:
    states, sent = list[State](), list[float]()

    def tick(state: State) -> None:
        states.append(state)
        if (tmp_path / "tried-0").exists() and state.shards_done >= 1 and not sent:
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    job = SleepingJob(str(tmp_path), seconds=0.5, writing=0.25, hanging=frozenset({0}))
    with pytest.raises(KeyboardInterrupt):
        run(job, 30, Listener(tick=tick), grace=4.0)
    assert time.monotonic() - sent[0] < 19, "less than the default grace period"
    tried, done = ({path.name.partition("-")[2] for path in tmp_path.glob(f"{what}-*")} for what in ("tried", "done"))
    assert tried - done == {"0"}, "only the hanging shard was dropped"
    assert 2 <= len(done) <= 5, "no shard was submitted after the signal"
    assert any("stopping:" in line for line in states[-1].errors)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("grace", [30.0, 0.0])
def test_run_ends_at_its_limit_after_the_shards_in_progress(tmp_path: Path, grace: float) -> None:
    limit = Limit(lambda state: state.shards_done >= 3, grace)
    state = run(SleepingJob(str(tmp_path), seconds=0.2, writing=0.1), 30, limit=limit)
    tried, done = ({path.name.partition("-")[2] for path in tmp_path.glob(f"{what}-*")} for what in ("tried", "done"))
    assert state.limited
    assert 3 <= state.shards_done <= 10
    if grace:
        assert len(done) == state.shards_done, "every shard that was submitted has been collected"
        assert tried == done
    assert state.worker_seconds > 0.3
    assert state.gpu_seconds == 0


@pytest.mark.usefixtures("ray_here")
def test_limit_that_is_not_reached_changes_nothing(tmp_path: Path) -> None:
    state = run(SleepingJob(str(tmp_path)), 4, workers=1, limit=Limit(lambda state: state.shards_done >= 5))
    assert (state.shards_done, state.limited) == (4, False)


def test_usage_counts_actors_that_run_with_their_share_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    place = {"host": "here"}
    pool: Any = SimpleNamespace(
        workers=[
            Worker(None, None, None, ResourceRequest(1, 0.5), where=place),
            Worker(None, None, None, ResourceRequest(1, 0.5)),
        ],
        detectors=[Worker(None, None, None, ResourceRequest(1, 1.0), is_detector=True, where=place)],
    )
    state = State(1)
    usage = Usage(pool, state)
    clock[0] += 10
    usage.update()
    usage.update()
    assert (state.worker_seconds, state.gpu_seconds) == (10.0, 15.0), "the pending actor occupies nothing"


@pytest.mark.usefixtures("ray_here")
def test_failing_shard_is_quarantined_after_three_tries(tmp_path: Path) -> None:
    errors: dict[int, str] = {}
    listener = Listener(quarantine=errors.__setitem__)
    state = run(SleepingJob(str(tmp_path), failing=frozenset({2})), 6, listener, workers=1)
    assert times(tmp_path, "tried", 2) == 3
    assert state.quarantined == [2]
    assert state.shards_done == 5
    assert "RuntimeError: shard 2 always fails" in errors[2]
    assert "in generate" in errors[2]
    assert "\x1b" not in errors[2]


@pytest.mark.usefixtures("ray_here")
def test_shard_past_its_deadline_is_killed_and_others_finish(tmp_path: Path) -> None:
    state = run(SleepingJob(str(tmp_path), hanging=frozenset({0})), 4, deadline=1.0)
    assert state.quarantined == [0]
    assert state.shards_done == 3
    assert any("not finished within 1 s" in line for line in state.errors)


@pytest.mark.usefixtures("ray_here")
def test_worker_generates_while_it_writes_the_previous_shard(tmp_path: Path) -> None:
    run(SleepingJob(str(tmp_path), writing=0.4), 5, workers=1)
    started, written = ([(tmp_path / f"{what}-{k}").stat().st_mtime for k in range(5)] for what in ("tried", "done"))
    assert any(start < end for start, end in zip(started[1:], written, strict=False))


@pytest.mark.usefixtures("ray_here")
def test_user_error_in_a_worker_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the model folder x is not a pipeline"):
        run(RefusingJob(str(tmp_path)), 3, workers=1)


@pytest.mark.usefixtures("ray_here")
def test_lost_detector_is_restarted_and_called_again(tmp_path: Path) -> None:
    state = run(AskingJob(str(tmp_path)), 4, workers=1, detectors=1)
    assert (tmp_path / "detector-died").exists()
    assert (state.shards_done, state.accepted, state.quarantined) == (4, 12, [])


@pytest.mark.usefixtures("ray_here")
def test_hanging_detector_is_restarted_and_called_again(tmp_path: Path) -> None:
    state = run(AskingJob(str(tmp_path), hangs=True), 3, workers=1, detectors=1, deadline=3.0)
    assert (state.shards_done, state.accepted, state.quarantined) == (3, 9, [])
    assert "restarting a detector worker on" in " ".join(state.errors)


@pytest.mark.usefixtures("ray_here")
def test_a_detector_that_hangs_in_its_first_call_counts_as_loaded(tmp_path: Path) -> None:
    """A worker may call `detect` before the driver calls `load`; the hanging detector would never be restarted."""
    import ray

    pool = Pool(AskingJob(str(tmp_path), hangs=True), ResourceRequest(1), detectors=1)
    try:
        handle = pool.detectors[0].handle
        handle.detect.remote([0])
        while not (tmp_path / "detector-died").exists():
            time.sleep(0.05)
        later = handle.load.options(concurrency_group=STARTING).remote()
        assert ray.wait([later], timeout=10)[0]
        assert ray.wait([pool.detectors[0].loading], timeout=10)[0]
    finally:
        pool.close()


@pytest.mark.usefixtures("ray_here")
def test_deadline_of_a_shard_does_not_include_the_loading_of_its_detector(tmp_path: Path) -> None:
    """Otherwise, a detector that loads longer than the deadline would be restarted until every shard is quarantined."""
    (tmp_path / "detector-died").touch()
    state = run(AskingJob(str(tmp_path), loading=8.0), 2, workers=1, detectors=1, deadline=4.0)
    assert (state.shards_done, state.quarantined, list(state.errors)) == (2, [], [])


class Unknown(SleepingJob):
    """The workers cannot import this module."""


@pytest.mark.usefixtures("ray_here")
def test_workers_that_cannot_start_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("only_in_the_driver")
    monkeypatch.setattr(module, "Unknown", Unknown, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Unknown, "__module__", module.__name__)
    with pytest.raises(UserError, match="the workers cannot start"):
        run(Unknown(str(tmp_path)), 3, workers=1)


def test_wrong_address_raises_a_clear_error() -> None:
    with (
        pytest.raises(UserError, match=r"nothing is listening at 127\.0\.0\.1:1 "),
        connected(EngineRecipe(address="127.0.0.1:1"), 1),
    ):
        pass
    with pytest.raises(UserError, match="an address must be host:port"), connected(EngineRecipe(address="nowhere"), 1):
        pass


def test_failed_start_of_ray_prints_a_clear_error(tmp_path: Path) -> None:
    command = [*PROGRAM, "generate", "--classes", "dog", "--n", "1", "--shards", str(tmp_path / "set")]
    with tempfile.NamedTemporaryFile(dir="/tmp") as file:  # a short path, because a long one is a different error
        run = subprocess.run(command, env={**os.environ, "RAY_TMPDIR": file.name}, capture_output=True, text=True)
    assert run.returncode == 75, run.stderr
    assert "Ray did not start on this machine" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_gpu_that_cannot_be_used_ends_the_run_only_if_no_other_worker_is_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler, failed = Scheduler.__new__(Scheduler), []
    other, starting = Worker(None, None, None, ready=True), Worker(None, None, None)
    monkeypatch.setattr(scheduler, "_pool", SimpleNamespace(workers=[other, starting]), raising=False)
    monkeypatch.setattr(scheduler, "_start_failed", lambda worker, message: failed.append(worker))
    error = SimpleNamespace(cause=GpuError("the GPU has too little free memory"))
    scheduler._load_failed(starting, error)
    assert failed == [starting]
    other.ready = False
    with pytest.raises(GpuError):
        scheduler._load_failed(starting, error)
