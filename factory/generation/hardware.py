"""Settings that depend on the hardware: whether workers can run, and the precision and batch size of a new dataset."""

import logging
from collections.abc import Mapping
from pathlib import Path

from factory.config.batch_size import AUTO_BATCH
from factory.config.recipe import Recipe
from factory.engine.capacity import Capacity, check_gpus, cluster_resources
from factory.engine.cluster import check_address, connected, is_connected
from factory.engine.environment import adopt, of_the_driver
from factory.errors import TransientError, UserError, one_line
from factory.generation.fitting_batch import measured_batch

_log = logging.getLogger(__name__)

_DEVICE_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Of the drivers of NVIDIA, AMD and WSL 2. Without them the driver process need not import torch."""
_CPU_BATCH = 8
_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Instructions with which a CPU is faster in bfloat16 than in float32; without them it is slower."""


def check_engine(recipe: Recipe) -> None:
    """Raise the errors of `connected` and `Capacity` about the options of the engine, before anything is written.

    UserError for an invalid address, or if this machine has too few GPUs; TransientError if no cluster responds. Ray is
    not started.
    """
    engine = recipe.engine
    detectors = engine.detectors if recipe.uses_detector() else 0
    check_address(engine.address)
    if engine.address is None and (engine.gpus_per_worker or (detectors and engine.gpus_per_detector)):
        check_gpus(engine, detectors, cluster_resources().gpus if is_connected() else local_gpus())


def for_hardware(recipe: Recipe, existing: Recipe | None) -> Recipe:
    """The recipe with a precision and memory layout if none were given, and with a number for `batch: auto`.

    An existing dataset keeps its settings, unless its model is not pinned, which means that the recipe was written to
    the folder by hand. For a new dataset on a cluster, this function connects to the cluster.
    """
    given = recipe.generator.model_fields_set
    no_precision, no_batch = "dtype" not in given, recipe.batch == AUTO_BATCH
    if existing is not None and existing.generator.revision is not None:
        dtype, batch = existing.generator.dtype, existing.batch
        channels_last = None if "channels_last" in given else existing.generator.channels_last
        return _completed(recipe, dtype if no_precision else None, channels_last, batch if no_batch else None)
    if not (no_precision or no_batch):
        return recipe
    gpus = _uses_gpus(recipe)
    if no_precision and gpus:
        _log.info("The workers use GPUs, so weights are loaded in bfloat16; --dtype float32 changes that.")
        recipe = _completed(recipe, "bfloat16")
    elif no_precision and recipe.engine.address is None and cpu_has_bfloat16():
        _log.info("This CPU has bfloat16 instructions, so weights use bfloat16; --dtype float32 changes that.")
        recipe = _completed(recipe, "bfloat16", None if "channels_last" in given else True)
    elif no_precision:  # the CPUs of a cluster are not known
        recipe = _completed(recipe, "float32")
    if no_batch:
        return _completed(recipe, batch=_fitting(recipe) if gpus else _CPU_BATCH)
    return recipe


def _completed(
    recipe: Recipe, dtype: str | None = None, channels_last: bool | None = None, batch: int | None = None
) -> Recipe:
    """The recipe with these settings; None keeps that of the recipe."""
    settings = {"dtype": dtype, "channels_last": channels_last}
    given = {name: value for name, value in settings.items() if value is not None}
    generator = recipe.generator.model_copy(update=given)
    return recipe.model_copy(update={"generator": generator, "batch": recipe.batch if batch is None else batch})


def _fitting(recipe: Recipe) -> int:
    """The batch size that fits into the GPU memory of a worker, measured by a task on the cluster."""
    engine, threads = recipe.engine, recipe.generator.threads
    with connected(engine, threads):
        import ray

        request, _ = Capacity(engine, threads).current()
        measure = ray.remote(num_cpus=request.cpus, num_gpus=request.gpus, max_retries=0)(_measured)
        try:
            batch = int(ray.get(measure.remote(recipe, min(1.0, request.gpus), of_the_driver())))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise TransientError(
                f"the worker that measured how many images fit into GPU memory was lost: {one_line(error)} Rerun the "
                f"same command; if that fails as well, the host may have too little memory: give --batch a number."
            ) from error
    _log.info("--batch auto: %d images fit into the GPU memory of a worker.", batch)
    return batch


def _measured(recipe: Recipe, share: float, variables: Mapping[str, str]) -> int:
    """As `measured_batch`, on any host: with the driver's environment variables for the model hub."""
    adopt(variables)
    return measured_batch(recipe, share)


def _uses_gpus(recipe: Recipe) -> bool:
    """Whether the workers of a new run will use GPUs."""
    engine, threads = recipe.engine, recipe.generator.threads
    if engine.gpus_per_worker is not None:
        return engine.gpus_per_worker > 0
    if engine.address is None:
        return local_gpus() > 0
    with connected(engine, threads):
        request, _ = Capacity(engine, threads).current()
    return request.gpus > 0


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies matrices in bfloat16 natively. False on other systems than Linux on x86.

    torch has the same information, but this way the driver need not import torch.
    """
    try:
        with cpuinfo.open() as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return False
    return bool(_CPU_FLAGS & set(flags.split()))


def local_gpus() -> int:
    """The number of GPUs that this process may use."""
    if not any(Path(file).exists() for file in _DEVICE_FILES):
        return 0
    import torch

    return torch.cuda.device_count()
