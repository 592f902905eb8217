"""Resources and number of workers: containers, memory, autoscaling clusters."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from factory.config.recipe import make_recipe
from factory.config.sections import EngineRecipe
from factory.engine import capacity, machine
from factory.engine.capacity import Capacity, ClusterResources, ResourceRequest, has_configured_node_types
from factory.engine.machine import session_folder, usable_cpus
from factory.errors import UserError
from factory.generation.worker_memory import worker_memory
from factory.generator import hub

GIB = 2**30
HEAD = {"CPU": 4.0, "memory": 16.0 * GIB}
GPU_NODE = {"CPU": 8.0, "GPU": 4.0, "memory": 64.0 * GIB}


def plan_workers(cluster: ClusterResources, memory: int = 0, **engine: Any) -> tuple[ResourceRequest, int]:
    return Capacity(EngineRecipe(**{"address": "auto", **engine}), threads=1, memory=memory).for_resources(cluster)


def test_gpus_that_join_later_are_used_and_waited_for_after_a_loss() -> None:
    capacity = Capacity(EngineRecipe(address="auto"), threads=1)
    assert capacity.for_resources(ClusterResources([HEAD])) == (ResourceRequest(1), 4)
    assert capacity.for_resources(ClusterResources([HEAD, GPU_NODE])) == (ResourceRequest(1, 1.0), 4)
    assert capacity.for_resources(ClusterResources([HEAD])) == (ResourceRequest(1, 1.0), 1), (
        "no fallback to CPUs after the GPU node is lost"
    )


def test_autoscaling_cluster_is_asked_for_its_maximum() -> None:
    limit = {"CPU": 84.0, "GPU": 40.0, "memory": 700.0 * GIB}
    assert plan_workers(ClusterResources([HEAD], scales=True, limit=limit)) == (ResourceRequest(1, 1.0), 40)
    assert plan_workers(ClusterResources([HEAD], scales=True, limit=limit), gpus_per_worker=0.5) == (
        ResourceRequest(1, 0.5),
        80,
    )
    assert plan_workers(ClusterResources([HEAD], scales=True, limit=limit), gpus_per_worker=0) == (
        ResourceRequest(1),
        84,
    )


def test_autoscaling_cluster_without_known_maximum_is_asked_for_more_than_it_has() -> None:
    assert plan_workers(ClusterResources([HEAD], scales=True), gpus_per_worker=1)[1] == 4
    assert plan_workers(ClusterResources([HEAD, GPU_NODE], scales=True), gpus_per_worker=1)[1] == 8
    assert plan_workers(ClusterResources([HEAD, GPU_NODE]), gpus_per_worker=1)[1] == 4, "a fixed cluster is not"


def test_monitor_of_a_fixed_cluster_is_not_an_autoscaler() -> None:
    node = "b0250b3b1faf4db1d68900499a68e7578c1c76f6a6754c2ac7459a51"

    def report(types: dict[str, str] | None) -> bytes:
        return json.dumps({"autoscaler_report": {"node_type_mapping": types}}).encode()

    assert not has_configured_node_types(report({node: f"node_{node}"})), "a local Ray, as recorded with Ray 2.60"
    assert not has_configured_node_types(report(None)), "before the first node has reported"
    assert has_configured_node_types(report({"f" * 56: "ray.head.default"})), (
        "a head that was started with a configuration"
    )
    assert has_configured_node_types(report({"10.0.0.1": "ray.head.default", "10.0.0.2": "gpu-worker"}))


def test_memory_limits_the_number_of_cpu_workers() -> None:
    assert plan_workers(ClusterResources([HEAD]), memory=6 * GIB) == (ResourceRequest(1, 0, 6 * GIB), 2)
    assert plan_workers(ClusterResources([HEAD, HEAD]), memory=6 * GIB)[1] == 4, "memory is counted per node"
    assert plan_workers(ClusterResources([HEAD]), memory=40 * GIB) == (ResourceRequest(1, 0, 16 * GIB), 1), (
        "one worker is always requested"
    )
    assert plan_workers(ClusterResources([HEAD]), memory=6 * GIB, workers=4)[0].memory == 0, (
        "an explicit number of workers requests no memory"
    )
    assert plan_workers(ClusterResources([HEAD]), memory_per_worker=4.0)[1] == 4


def estimated(model: Path | str, **generator: Any) -> int:
    recipe = make_recipe({"n": 1, "classes": "voc", "generator": {"model": str(model), **generator}})
    return worker_memory(recipe, detector_in_worker=False)


def test_worker_memory_is_estimated_from_the_model_files(tiny_model: Path) -> None:
    stored = sum(path.stat().st_size for path in tiny_model.rglob("*.safetensors"))
    assert estimated(tiny_model) - 0.75 * GIB == pytest.approx(1.35 * stored, rel=0.1)
    assert estimated(tiny_model, dtype="bfloat16") - 0.75 * GIB == pytest.approx(1.35 * stored / 2, rel=0.1)


def test_worker_memory_counts_one_of_several_variants(tiny_model: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    unet = copied / "unet" / "diffusion_pytorch_model.safetensors"
    for variant in ("fp16", "non_ema"):  # as of Stable Diffusion 1.5
        shutil.copy(unet, unet.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
    assert estimated(copied) == estimated(tiny_model)


def test_worker_memory_of_a_hub_model_is_estimated_without_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks before a run download its configurations; such a folder counted as a model without weights."""
    assert estimated("owner/not-downloaded") == 6 * GIB
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "x"]}')
    (tmp_path / "unet").mkdir()
    monkeypatch.setattr(hub, "cached_folder", lambda model, revision: tmp_path)
    assert estimated("owner/only-configurations", revision="0" * 40) == 6 * GIB


@pytest.mark.parametrize(
    ("pipeline", "denoiser", "used"),
    [("StableDiffusionPipeline", "unet", 1000), ("StableDiffusion3Pipeline", "transformer", 1000 + 200)],
)
def test_worker_memory_of_a_checkpoint_counts_the_file_and_the_components_that_it_lacks(
    pipeline: str, denoiser: str, used: int, tmp_path: Path
) -> None:
    index = {"_class_name": pipeline} | {name: ["diffusers", "x"] for name in (denoiser, "vae")}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for file, parameters in ((f"{denoiser}/a", 30), ("vae/a", 200), ("checkpoint", 1000)):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        save_file({"weight": torch.zeros(parameters)}, tmp_path / f"{file}.safetensors")
    named = f"{tmp_path}@{tmp_path / 'checkpoint.safetensors'}"
    assert estimated(named) - estimated(named, dtype="float16") == pytest.approx(1.35 * used * 2, abs=1)


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"box/cpu.max": "150000 100000", "cpu.max": "max 100000"}, "0::/box\n", 1.5),
        ({"cpu.max": "200000 100000"}, "0::/box/deep\n", 2.0),
        ({"box/cpu.max": "max 100000"}, "0::/box\n", None),
        ({"cpu/job/cpu.cfs_quota_us": "300000", "cpu/job/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/job\n", 3.0),
        ({"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/job\n", None),
        ({}, "4:memory:/job\n", None),
        ({"job\udce9/cpu.max": "100000 100000"}, "0::/job\udce9\n", 1.0),
    ],
)
def test_cgroup_quota_is_read(files: dict[str, str], own: str, expected: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / "cg" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cg" / name).write_text(text + "\n")
    (tmp_path / "own").write_bytes(os.fsencode(own))
    assert machine._quota(tmp_path / "cg", tmp_path / "own") == expected


def test_usable_cpus_respects_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_session_folder_is_short_or_raises_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/" + "x" * 38)
    assert session_folder() is None
    monkeypatch.setenv("TMPDIR", "/" + "x" * 87)
    assert session_folder() == "/tmp/ray"
    monkeypatch.setenv("RAY_TMPDIR", "/" + "y" * 87)
    with pytest.raises(
        UserError, match=r"RAY_TMPDIR is /y+, 88 bytes long; .* at most 39, .*: set RAY_TMPDIR to a shorter"
    ):
        session_folder()


@pytest.mark.parametrize("field", ["gpus_per_worker", "gpus_per_detector"])
def test_shares_of_gpus_that_ray_rejects_are_rejected_first(field: str) -> None:
    for gpus in (0, 0.25, 1, 2.0):
        make_recipe({"n": 1, "engine": {field: gpus}})
    for gpus in (1.5, 0.00001):
        with pytest.raises(UserError, match=f"{field}.*must be whole, or a fraction .* .got {gpus:g}"):
            make_recipe({"n": 1, "engine": {field: gpus}})


def test_detectors_that_leave_no_gpu_for_a_worker_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are created first, so the worker would wait forever."""
    monkeypatch.setattr(capacity, "cluster_resources", lambda: ClusterResources([{"CPU": 8.0, "GPU": 1.0}]))
    for engine in ({}, {"gpus_per_worker": 0.5}):
        with pytest.raises(UserError, match="1 detectors with 1 GPUs each leave too little of the 1 GPUs"):
            Capacity(EngineRecipe(gpus_per_detector=1.0, **engine), threads=1, detectors=1)
    Capacity(EngineRecipe(gpus_per_detector=0.5, gpus_per_worker=0.5), threads=1, detectors=1)
    Capacity(EngineRecipe(gpus_per_detector=1.0), threads=1, detectors=0)
