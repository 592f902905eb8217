"""The batch size that fits into GPU memory, measured with batches of one and two images."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol

from factory.config.plan import Plan, PlannedShard
from factory.config.recipe import Recipe
from factory.generation.components import Components, load_components
from factory.generation.shard import produce
from factory.training.memory import free_bytes

MAX_BATCH = 64
"""Largest batch size of `auto`: larger batches are not faster, and a worker reports its progress once per batch."""
_USABLE = 0.85
"""Share of the memory that tensors may use; the allocator needs some more."""


class MemoryMeter(Protocol):
    """Measures the memory of a device."""

    def reset(self) -> None:
        """Start a measurement."""
        ...

    def peak(self) -> int | None:
        """The peak memory since the start in bytes; None if an allocation failed."""
        ...


class CudaMeter:
    """The memory that torch allocated on the current CUDA device."""

    def __init__(self) -> None:
        self._failures = 0

    def reset(self) -> None:
        """Start a measurement."""
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self._failures = self._count()

    def peak(self) -> int | None:
        """The peak memory since the start in bytes; None if an allocation failed."""
        import torch

        return None if self._count() > self._failures else torch.cuda.max_memory_allocated()

    def _count(self) -> int:
        import torch

        return int(torch.cuda.memory_stats().get("num_ooms", 0))


def measured_batch(recipe: Recipe, share: float) -> int:
    """The batch size that fits into a `share` (0 to 1) of the GPU of this process. The recipe must be pinned."""
    import torch

    from factory.generator.memory import loading

    with loading(f"the models of {recipe.generator.model}"):
        components = load_components(recipe, "cuda")
    # Other programs may use the same GPU, so what is free counts as well as the share of the total.
    total = torch.cuda.get_device_properties(0).total_memory
    limit = min(_USABLE * share * total, torch.cuda.memory_allocated() + free_bytes("cuda"))
    return largest_batch(recipe, components, CudaMeter(), int(limit))


def largest_batch(recipe: Recipe, components: Components, meter: MemoryMeter, limit: int) -> int:
    """The batch size whose peak memory stays below `limit` bytes, extrapolated from one and two images."""
    samples = tuple(islice(Plan(recipe).samples(), 2))

    def peak(count: int) -> int | None:
        meter.reset()
        once = recipe.model_copy(update={"batch": count, "attempts": 1})
        with ThreadPoolExecutor(1) as encoder:
            produce(PlannedShard(0, samples[:count], "trial", recipe.format), once, components, encoder)
        return meter.peak()

    return _extrapolated(peak, limit) if len(samples) == 2 else 1


def _extrapolated(peak: Callable[[int], int | None], limit: int) -> int:
    first, second = peak(1), peak(2)
    if first is None or second is None:
        return 1
    per_image = max(1, second - first)
    return max(1, min(MAX_BATCH, 1 + (limit - first) // per_image))
