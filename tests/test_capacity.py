"""What a worker asks for and how many are asked for: containers, memory, clusters that grow."""

import os
from pathlib import Path
from typing import Any

import pytest

from factory.config.recipe import make_recipe
from factory.config.sections import EngineRecipe
from factory.engine import machine
from factory.engine.capacity import Capacity, Resources, Share
from factory.engine.machine import session_folder, usable_cpus
from factory.errors import UserError
from factory.generation.worker_memory import worker_memory

GIB = 2**30
HEAD = {"CPU": 4.0, "memory": 16.0 * GIB}
GPU_HOST = {"CPU": 8.0, "GPU": 4.0, "memory": 64.0 * GIB}


def plan_workers(cluster: Resources, memory: int = 0, **engine: Any) -> tuple[Share, int]:
    return Capacity(EngineRecipe(**{"address": "auto", **engine}), threads=1, memory=memory).for_resources(cluster)


def test_gpus_that_join_later_are_used_and_then_waited_for() -> None:
    capacity = Capacity(EngineRecipe(address="auto"), threads=1)
    assert capacity.for_resources(Resources([HEAD])) == (Share(1), 4)
    assert capacity.for_resources(Resources([HEAD, GPU_HOST])) == (Share(1, 1.0), 4)
    assert capacity.for_resources(Resources([HEAD])) == (Share(1, 1.0), 1), "a lost GPU host is no reason to go on with CPUs"


def test_a_cluster_that_scales_from_zero_is_asked_for_all_that_it_can_be() -> None:
    limit = {"CPU": 84.0, "GPU": 40.0, "memory": 700.0 * GIB}
    assert plan_workers(Resources([HEAD], scales=True, limit=limit)) == (Share(1, 1.0), 40)
    assert plan_workers(Resources([HEAD], scales=True, limit=limit), gpus_per_worker=0.5) == (Share(1, 0.5), 80)
    assert plan_workers(Resources([HEAD], scales=True, limit=limit), gpus_per_worker=0) == (Share(1), 84)


def test_a_cluster_that_scales_to_nobody_knows_what_is_asked_for_more_than_is_there() -> None:
    assert plan_workers(Resources([HEAD], scales=True), gpus_per_worker=1)[1] == 4
    assert plan_workers(Resources([HEAD, GPU_HOST], scales=True), gpus_per_worker=1)[1] == 8
    assert plan_workers(Resources([HEAD, GPU_HOST]), gpus_per_worker=1)[1] == 4, "a fixed one is not"


def test_cpu_workers_reserve_memory_so_that_not_every_core_loads_a_model() -> None:
    assert plan_workers(Resources([HEAD]), memory=6 * GIB) == (Share(1, 0, 6 * GIB), 2)
    assert plan_workers(Resources([HEAD, HEAD]), memory=6 * GIB)[1] == 4, "by machine: memory of two is not one"
    assert plan_workers(Resources([HEAD]), memory=40 * GIB) == (Share(1, 0, 16 * GIB), 1), "one is tried in any case"
    assert plan_workers(Resources([HEAD]), memory=6 * GIB, workers=4)[0].memory == 0, "who gives a number decides"
    assert plan_workers(Resources([HEAD]), memory_per_worker=4.0)[1] == 4


def test_the_memory_of_a_worker_is_estimated_from_the_files_of_its_models(tiny_model: Path) -> None:
    def estimated(**generator: Any) -> int:
        recipe = make_recipe({"n": 1, "classes": "voc", "generator": {"model": str(tiny_model), **generator}})
        return worker_memory(recipe, detector_in_worker=False)

    stored = sum(path.stat().st_size for path in tiny_model.rglob("*.safetensors"))
    assert estimated() - 0.75 * GIB == pytest.approx(1.35 * stored, rel=0.1)
    assert estimated(dtype="bfloat16") - 0.75 * GIB == pytest.approx(1.35 * stored / 2, rel=0.1)
    unknown = make_recipe({"n": 1, "classes": "voc", "generator": {"model": "owner/not-downloaded"}})
    assert worker_memory(unknown, detector_in_worker=False) == 6 * GIB


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"box/cpu.max": "150000 100000", "cpu.max": "max 100000"}, "0::/box\n", 1.5),
        ({"cpu.max": "200000 100000"}, "0::/box/deep\n", 2.0),
        ({"box/cpu.max": "max 100000"}, "0::/box\n", None),
        ({"cpu/job/cpu.cfs_quota_us": "300000", "cpu/job/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/job\n", 3.0),
        ({"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/job\n", None),
        ({}, "4:memory:/job\n", None),
    ],
)
def test_the_quota_of_a_container_is_read(files: dict[str, str], own: str, expected: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / "cg" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cg" / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own)
    assert machine._quota(tmp_path / "cg", tmp_path / "own") == expected


def test_cores_that_the_process_may_not_use_do_not_count() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_sockets_find_a_short_folder_or_a_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/" + "x" * 38)
    assert session_folder() is None
    monkeypatch.setenv("TMPDIR", "/" + "x" * 87)
    assert session_folder() == "/tmp/ray"
    monkeypatch.setenv("RAY_TMPDIR", "/" + "y" * 87)
    with pytest.raises(
        UserError, match=r"RAY_TMPDIR is /y+, 88 bytes long; .* at most 39: set RAY_TMPDIR to a shorter"
    ):
        session_folder()
