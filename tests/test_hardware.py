"""Settings that depend on the hardware: precision and `batch: auto`. A dataset that exists keeps its own."""

from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import ray
import torch

from factory.cli.options import assemble
from factory.config.recipe import Recipe, make_recipe
from factory.config.sections import MaskRecipe
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import init_or_resume
from factory.engine.capacity import ResourceRequest
from factory.engine.cluster import _check_reachable
from factory.errors import TransientError, UserError
from factory.generation import fitting_batch, hardware, shard_job
from factory.generation.components import load_components
from factory.generation.pin import pin_recipe
from factory.generation.run import generate, prepare
from factory.generation.shard_job import ShardJob
from factory.generation.worker_memory import parameters
from factory.training.precision import bfloat16_is_faster


def _recipe(model: Path, dtype: str | None = None, batch: Any = 8, **engine: Any) -> Recipe:
    generator = {"model": str(model), "steps": 2} | ({} if dtype is None else {"dtype": dtype})
    return make_recipe({"n": 2, "classes": "voc", "batch": batch, "generator": generator, "engine": engine})


@pytest.fixture(params=[0, 2])
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(hardware, "local_gpus", lambda: request.param)
    monkeypatch.setattr(hardware, "cpu_has_bfloat16", lambda: False)
    return int(request.param)


def test_new_datasets_use_bfloat16_on_gpus(tiny_model: Path, tmp_path: Path, gpus: int) -> None:
    def dtype(recipe: Recipe) -> str:
        return prepare(recipe, Store(str(tmp_path / "out"))).generator.dtype

    assert dtype(_recipe(tiny_model)) == ("bfloat16" if gpus else "float32")
    assert dtype(_recipe(tiny_model, gpus_per_worker=0)) == "float32"
    if gpus:
        assert dtype(_recipe(tiny_model, gpus_per_worker=0.5)) == "bfloat16"
    assert dtype(_recipe(tiny_model, "float16")) == "float16"


def test_new_datasets_use_bfloat16_on_local_cpus_that_have_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(**generator: Any) -> tuple[str, bool]:
        data = {"n": 2, "classes": "voc", "generator": {"model": str(tiny_model), "steps": 2} | generator}
        prepared = prepare(make_recipe(data | {"engine": {"gpus_per_worker": 0}}), store).generator
        return prepared.dtype, prepared.channels_last

    store = Store(str(tmp_path / "out"))
    monkeypatch.setattr(hardware, "cpu_has_bfloat16", lambda: True)
    assert settings() == ("bfloat16", True)
    assert settings(dtype="float32") == ("float32", False)
    assert settings(channels_last=False) == ("bfloat16", False)
    monkeypatch.setattr(hardware, "cpu_has_bfloat16", lambda: False)
    assert settings() == ("float32", False)
    assert settings(channels_last=True) == ("float32", True)


@pytest.mark.parametrize(
    ("flags", "native"),
    [
        ("fpu avx512f avx512_bf16 sha_ni", True),
        ("fpu amx_bf16", True),
        ("fpu avx2 avx512f avx512bw", False),
    ],
)
def test_instructions_of_the_cpu_are_those_of_the_kernel(tmp_path: Path, flags: str, native: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\nbugs : avx512_bf16\n")
    assert hardware.cpu_has_bfloat16(tmp_path / "cpuinfo") == native
    assert not hardware.cpu_has_bfloat16(tmp_path / "missing")


def test_driver_and_training_agree_about_this_cpu() -> None:
    assert hardware.cpu_has_bfloat16() == bfloat16_is_faster("cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dataset_keeps_its_precision_on_another_machine(
    tiny_model: Path, tmp_path: Path, dtype: str, gpus: int
) -> None:
    store = Store(str(tmp_path / "out"))
    created = init_or_resume(store, prepare(_recipe(tiny_model, dtype), store))
    assert prepare(_recipe(tiny_model), store).fingerprint() == created.fingerprint()


def test_a_dataset_of_a_cpu_with_bfloat16_is_resumed_on_one_without(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "out"))
    monkeypatch.setattr(hardware, "cpu_has_bfloat16", lambda: True)
    created = init_or_resume(store, prepare(_recipe(tiny_model, gpus_per_worker=0), store))
    assert created.generator.channels_last
    monkeypatch.setattr(hardware, "cpu_has_bfloat16", lambda: False)
    assert prepare(_recipe(tiny_model, gpus_per_worker=0), store).fingerprint() == created.fingerprint()


def test_local_gpus_are_those_of_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr(hardware, "_DEVICE_FILES", (str(tmp_path / "none"),))
    assert hardware.local_gpus() == 0
    monkeypatch.setattr(hardware, "_DEVICE_FILES", (str(tmp_path),))
    assert hardware.local_gpus() == 3


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"gpus_per_worker": 1}, r"a worker requires 1 GPU, but this machine has 0; give --gpus-per-worker 0 \(in a"),
        ({"gpus_per_worker": 0, "detectors": 1, "gpus_per_detector": 0.5}, "a detector requires 0.5 GPUs, but this"),
        ({"address": "nowhere"}, "an address must be host:port, ray://host:port or auto, got 'nowhere'"),
        ({"address": "127.0.0.1:1"}, "nothing is listening at 127.0.0.1:1"),
    ],
)
def test_an_engine_that_cannot_run_is_rejected_before_anything_is_written(
    engine: dict[str, Any], message: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither Ray is started nor the folder claimed; a dataset that is complete needs no workers."""
    monkeypatch.setattr(hardware, "local_gpus", lambda: 0)
    monkeypatch.delattr(ray, "init")
    store = Store(str(tmp_path / "out"))
    recipe = _recipe(tiny_model, "float32", **engine).model_copy(update={"masks": MaskRecipe(source="detector")})
    with pytest.raises(UserError, match=message):
        generate(recipe, store)
    assert not (tmp_path / "out").exists()
    init_or_resume(store, recipe)
    with pytest.raises(UserError, match=message):
        prepare(recipe, store)
    store.put("receipts/000000.json", b"{}")
    prepare(recipe, store)
    with pytest.raises(UserError, match=message):
        prepare(recipe.model_copy(update={"n": 3}), store)


def test_a_detector_pool_that_is_not_used_needs_no_gpu(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "local_gpus", lambda: 0)
    prepare(_recipe(tiny_model, "float32", detectors=1, gpus_per_detector=1), Store(str(tmp_path / "out")))


class _Meter:
    """Reports these peaks, one per measurement."""

    def __init__(self, *peaks: int | None) -> None:
        self._peaks, self.resets = list(peaks), 0

    def reset(self) -> None:
        self.resets += 1

    def peak(self) -> int | None:
        return self._peaks[self.resets - 1]


@pytest.mark.parametrize(
    ("peaks", "batch"),
    [
        ((300, 350), 1 + (850 - 300) // 50),
        ((300, 301), fitting_batch.MAX_BATCH),
        ((800, 900), 1),
        ((900, 900), 1),
        ((300, None), 1),  # two images did not fit
    ],
)
def test_batch_is_what_fits_after_one_and_two_images(
    tiny_model: Path, peaks: tuple[int | None, ...], batch: int
) -> None:
    recipe = pin_recipe(_recipe(tiny_model))
    meter = _Meter(*peaks)
    assert fitting_batch.largest_batch(recipe, load_components(recipe), meter, limit=850) == batch
    assert meter.resets == 2


def test_auto_batch_is_a_number_in_the_dataset(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "out"))
    assert prepare(_recipe(tiny_model, batch="auto", gpus_per_worker=0), store).batch == 8
    monkeypatch.setattr(hardware, "local_gpus", lambda: 1)
    monkeypatch.setattr(hardware, "_fitting", lambda recipe: 5)
    created = init_or_resume(store, prepare(_recipe(tiny_model, batch="auto"), store))
    assert created.batch == 5
    monkeypatch.undo()
    assert prepare(_recipe(tiny_model, batch="auto"), store).fingerprint() == created.fingerprint()


def test_a_recipe_written_into_the_folder_by_hand_starts_a_new_dataset(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "out"))
    store.create("recipe.yaml", f"n: 2\nclasses: voc\nbatch: auto\ngenerator: {{model: {tiny_model}}}\n".encode())
    monkeypatch.setattr(hardware, "local_gpus", lambda: 1)
    monkeypatch.setattr(hardware, "_fitting", lambda recipe: 5)
    given = assemble(None, store, {})
    assert given.generator.model_fields_set == {"model"}
    created = init_or_resume(store, prepare(given, store))
    assert (created.batch, created.generator.dtype) == (5, "bfloat16")
    assert prepare(assemble(None, store, {}), store).fingerprint() == created.fingerprint()


def test_auto_batch_survives_a_round_trip(tiny_model: Path) -> None:
    recipe = _recipe(tiny_model, batch="auto")
    assert make_recipe(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize("batch", [0, "0", -1, "many", 2.5, 1025])
def test_other_batches_are_rejected(tiny_model: Path, batch: Any) -> None:
    with pytest.raises(UserError, match="batch"):
        _recipe(tiny_model, batch=batch)


def test_a_model_that_does_not_fit_on_the_gpu_raises_a_clear_error(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(shard_job, "load_components", full)
    job = ShardJob(pin_recipe(_recipe(tiny_model)), Store(str(tmp_path / "out")))
    init_or_resume(job.store, job.recipe)
    with pytest.raises(UserError, match="the GPU has too little free memory for"):
        job.open("cpu", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for load in (lambda: job.open("cuda", None), lambda: job.open_detector("cuda")):
        with pytest.raises(UserError, match=r"has a GPU, but PyTorch .* cannot use it"):
            load()


def test_worker_on_a_machine_without_the_folder_of_the_dataset_ends_the_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would write its shards to its own disk, and the driver would report that they are missing at the end."""
    monkeypatch.setattr(shard_job, "_APPEARS", 0.0)
    job = ShardJob(_recipe(tiny_model), Store(str(tmp_path / "out")))
    message = r"does not see the recipe.yaml that the driver has written to .*/out; give a bucket, or a folder that all"
    with pytest.raises(UserError, match=message):
        job.open("cpu", None)


class _FailedTaskError(ray.exceptions.RayTaskError):
    def __init__(self) -> None:
        self.cause = UserError("the GPU is too small.")


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (_FailedTaskError(), UserError, r"^the GPU is too small\.$"),
        (ray.exceptions.WorkerCrashedError(), TransientError, r"was lost: The worker died unexpectedly .* Rerun"),
    ],
)
def test_the_batch_is_measured_with_the_drivers_settings_and_its_errors_are_one_sentence(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, kind: type[UserError], message: str
) -> None:
    """Ray's error would quote the traceback of the task. A spot node that was lost is a temporary failure."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    received: list[Any] = []
    task = SimpleNamespace(remote=lambda *arguments: received.append(arguments))
    monkeypatch.setattr(ray, "remote", lambda **options: lambda function: task)
    monkeypatch.setattr(ray, "get", Mock(side_effect=failure))
    monkeypatch.setattr(hardware, "connected", lambda engine, threads: nullcontext())
    monkeypatch.setattr(hardware, "Capacity", lambda *_: SimpleNamespace(current=lambda: (ResourceRequest(1, 1.0), 1)))
    with pytest.raises(kind, match=message):
        hardware._fitting(_recipe(tiny_model, batch="auto"))
    assert received[0][2]["HF_TOKEN"] == "secret"


def test_parameters_of_a_pickle_are_estimated_from_its_size(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/diffusion_pytorch_model.bin").write_bytes(bytes(400))
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    assert parameters(tmp_path) == 100


def test_versions_of_libraries_that_are_not_installed_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(shard_job, "version", version)
    assert set(shard_job.versions().values()) == {shard_job.platform.python_version(), "unknown"}


@pytest.mark.parametrize("port", ["0", "65536", "70000", "9" * 5000])
def test_address_with_a_port_that_does_not_exist_is_rejected(port: str) -> None:
    with pytest.raises(UserError, match="with a port from 1 to 65535, got '127"):
        _check_reachable(f"127.0.0.1:{port}")
