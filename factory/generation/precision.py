"""The default precision of a new dataset: bfloat16 if its workers use GPUs, float32 on CPUs."""

import logging
from pathlib import Path

from factory.config.recipe import Recipe
from factory.config.sections import EngineRecipe
from factory.engine.capacity import Capacity
from factory.engine.cluster import connected

_log = logging.getLogger(__name__)

_DEVICE_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Of the drivers of NVIDIA, AMD and WSL 2. Without them the driver process need not import torch."""


def with_precision(recipe: Recipe, existing: Recipe | None) -> Recipe:
    """The recipe with the data type of its weights, unless it was given.

    A dataset that exists keeps its own. For a new one on a cluster, this connects to the cluster.
    """
    if "dtype" in recipe.generator.model_fields_set:
        return recipe
    if existing is not None:
        dtype = existing.generator.dtype
    else:
        dtype = "bfloat16" if _uses_gpus(recipe.engine, recipe.generator.threads) else "float32"
        if dtype == "bfloat16":
            _log.info("The workers use GPUs, so weights are loaded in bfloat16; --dtype float32 changes that.")
    return recipe.model_copy(update={"generator": recipe.generator.model_copy(update={"dtype": dtype})})


def _uses_gpus(engine: EngineRecipe, threads: int) -> bool:
    """Whether the workers of a new run will use GPUs."""
    if engine.gpus_per_worker is not None:
        return engine.gpus_per_worker > 0
    if engine.address is None:
        return local_gpus() > 0
    with connected(engine, threads):
        share, _ = Capacity(engine, threads).current()
    return share.gpus > 0


def local_gpus() -> int:
    """The number of GPUs that this process may use."""
    if not any(Path(file).exists() for file in _DEVICE_FILES):
        return 0
    import torch

    return torch.cuda.device_count()
