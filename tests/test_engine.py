"""The engine on work that sleeps, fails, hangs and dies: everything is done once, and nothing is given up too early."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.engine.cluster import connected
from factory.engine.pool import Member, Pool
from factory.engine.scheduler import Listener, Scheduler, State
from factory.errors import UserError
from factory.recipe_parts import EngineRecipe
from factory.testing.jobs import AskingJob, RefusingJob, SleepingJob

PROGRAM = (sys.executable, "-c", "from factory.cli.main import run; run()")


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with connected(EngineRecipe(workers=3), threads=1):
        yield


def run(
    job: SleepingJob, shards: int, workers: int = 2, deadline: float | None = None, listener: Listener | None = None
) -> State:
    pool = Pool(job, threads=1, gpus=0, detectors=0, gpus_per_detector=0)
    try:
        return Scheduler(pool, range(shards), workers, (1, 0), deadline, listener or Listener()).run()
    finally:
        pool.close()


def times(folder: Path, mark: str, shard: int) -> int:
    path = folder / f"{mark}-{shard}"
    return len(path.read_text()) if path.exists() else 0


@pytest.mark.usefixtures("ray_here")
def test_every_shard_is_made_once(tmp_path: Path) -> None:
    state = run(SleepingJob(str(tmp_path)), 20)
    assert [times(tmp_path, "done", shard) for shard in range(20)] == [1] * 20
    assert (state.shards_done, state.accepted, state.lost, state.requeued) == (20, 20, 0, 0)


def test_the_last_shards_wait_for_whoever_is_free_first(tmp_path: Path) -> None:
    pool = Pool(SleepingJob(str(tmp_path)), threads=1, gpus=0, detectors=0, gpus_per_detector=0)
    idle, busy, full, loading = (Member(name, None, ready=True) for name in ("idle", "busy", "full", "loading"))
    busy.shards, full.shards, loading.ready = {0: None}, {1: None, 2: None}, False

    def given(members: list[Member], queued: int) -> list[str]:
        pool.members = members
        return [member.handle for member in pool.free(queued)]

    assert given([full, busy, idle], queued=4) == ["idle", "busy", "idle"], "plenty: one more beyond each first one"
    assert given([full, busy, idle], queued=3) == ["idle"], "then fewer are left than there are actors"
    assert given([idle, loading], queued=2) == ["idle"], "the other one is for the actor that still loads"
    assert given([idle, loading], queued=3) == ["idle", "idle"]


@pytest.mark.usefixtures("ray_here")
def test_the_shards_of_a_worker_that_dies_go_back_to_the_queue(tmp_path: Path) -> None:
    state = run(SleepingJob(str(tmp_path), dying=frozenset({1, 4})), 8)
    assert all(times(tmp_path, "done", shard) >= 1 for shard in range(8))
    assert state.shards_done == 8
    assert state.lost == 2
    assert any("lost a worker" in line for line in state.errors)


@pytest.mark.usefixtures("ray_here")
def test_a_shard_that_fails_is_tried_three_times_and_then_put_aside(tmp_path: Path) -> None:
    told: dict[int, str] = {}
    listener = Listener(quarantine=told.__setitem__)
    state = run(SleepingJob(str(tmp_path), failing=frozenset({2})), 6, listener=listener)
    assert times(tmp_path, "tried", 2) == 3
    assert state.quarantined == [2]
    assert state.shards_done == 5
    assert "RuntimeError: shard 2 always fails" in told[2]
    assert "in generate" in told[2]
    assert "\x1b" not in told[2]


@pytest.mark.usefixtures("ray_here")
def test_a_shard_over_its_deadline_is_killed_and_its_neighbours_are_done(tmp_path: Path) -> None:
    state = run(SleepingJob(str(tmp_path), hanging=frozenset({0})), 4, deadline=1.0)
    assert state.quarantined == [0]
    assert state.shards_done == 3
    assert any("not done after 1 s" in line for line in state.errors)


@pytest.mark.usefixtures("ray_here")
def test_a_worker_generates_while_it_writes_the_shard_before(tmp_path: Path) -> None:
    run(SleepingJob(str(tmp_path)), 2, workers=1)
    start = time.monotonic()
    run(SleepingJob(str(tmp_path), seconds=0.4, writing=0.4), 5, workers=1)
    assert time.monotonic() - start < 5 * 0.8 - 0.5


@pytest.mark.usefixtures("ray_here")
def test_bad_input_that_a_worker_finds_ends_the_run_with_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the model folder x is no pipeline"):
        run(RefusingJob(str(tmp_path)), 3)


@pytest.mark.usefixtures("ray_here")
def test_workers_ask_the_detector_pool_and_a_lost_detector_comes_back(tmp_path: Path) -> None:
    pool = Pool(AskingJob(str(tmp_path)), threads=1, gpus=0, detectors=1, gpus_per_detector=0)
    try:
        state = Scheduler(pool, range(4), 1, (1, 0), None, Listener()).run()
    finally:
        pool.close()
    assert (tmp_path / "detector-died").exists()
    assert (state.shards_done, state.accepted, state.quarantined) == (4, 12, [])


class Unknown(SleepingJob):
    """The workers cannot import this module."""


@pytest.mark.usefixtures("ray_here")
def test_workers_that_cannot_start_end_the_run_instead_of_being_replaced_for_ever(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the workers cannot start"):
        run(Unknown(str(tmp_path)), 3)


def test_an_address_where_no_cluster_is_gets_a_sentence() -> None:
    with (
        pytest.raises(UserError, match=r"nothing answers at 127\.0\.0\.1:1 "),
        connected(EngineRecipe(address="127.0.0.1:1"), 1),
    ):
        pass
    with pytest.raises(UserError, match="an address is host:port"), connected(EngineRecipe(address="nowhere"), 1):
        pass


def test_a_ray_that_does_not_start_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = subprocess.run(
        [*PROGRAM, "generate", "--classes", "dog", "--n", "1", "--shards", str(tmp_path / "set")],
        env={**os.environ, "RAY_TMPDIR": str(tmp_path / "file")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2, run.stderr
    assert "Ray did not start on this machine" in run.stderr
    assert "Traceback" not in run.stderr
