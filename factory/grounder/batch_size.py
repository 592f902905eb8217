"""Chooses the batch size of training by the free memory."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from factory.grounder.data import first_samples
from factory.training.memory import free_bytes

if TYPE_CHECKING:
    from factory.grounder.training import GrounderTask


_MAX_SAMPLES = 64
"""Samples of which the one with the most classes is measured, because there are logits for each class."""
_TRANSIENT = 2.0
"""On a CPU, only tensors that are saved for the backward pass are counted; this factor allows for temporary ones."""


def fitting_batch(task: "GrounderTask", max_batch: int, report: Callable[[str], None]) -> int:
    """The largest power of two up to `max_batch` whose samples fit into the free memory, but at least 1.

    One sample runs forward and backward; weights and running statistics do not change.
    """
    needed = _bytes_per_sample(task)
    free = free_bytes(task.device)
    batch = _power_of_two(min(max_batch, int(free / max(1, needed))))
    if batch < max_batch:
        report(
            f"Batch size {batch}: a sample takes {needed / 2**30:.2f} GiB, and {free / 2**30:.1f} GiB of {task.device} "
            f"may be used; --batch overrides it."
        )
    return batch


def _bytes_per_sample(task: "GrounderTask") -> float:
    samples = first_samples(task.datasets[0], _MAX_SAMPLES)
    sample = max(samples, key=lambda s: len(s.prompt.classes))
    saved: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        saved[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    on_gpu = task.device.startswith("cuda")
    task.model.eval()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(task.device)
        before = torch.cuda.memory_allocated(task.device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        loss = task.loss_of([sample])
    loss.backward()  # type: ignore[no-untyped-call]
    task.model.zero_grad(set_to_none=True)
    task.model.train()
    if on_gpu:
        return float(torch.cuda.max_memory_allocated(task.device) - before)
    weights = {weight.untyped_storage().data_ptr() for weight in task.model.parameters()}
    return _TRANSIENT * sum(size for address, size in saved.items() if address not in weights)


def _power_of_two(number: int) -> int:
    return 1 << (max(1, number).bit_length() - 1)
