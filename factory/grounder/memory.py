"""Chooses the batch size of training by the free memory."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from factory.grounder.data import first_samples

if TYPE_CHECKING:
    from factory.grounder.training import GrounderTask

_log = logging.getLogger(__name__)

_MAX_SAMPLES = 64
"""Samples of which the one with the most classes is measured, because there are logits for each class."""
_GPU_SHARE, _HOST_SHARE = 0.85, 0.5
"""Shares of the free memory that a step may use; a host needs memory for shards, too."""
_TRANSIENT = 2.0
"""On a CPU, only tensors that are saved for the backward pass are counted; this factor allows for temporary ones."""


def fitting_batch(task: "GrounderTask", max_batch: int, report: Callable[[str], None] = _log.info) -> int:
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


def free_bytes(device: str) -> float:
    """The part of a device's free memory that a step may use."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return _GPU_SHARE * (free + unused)
    free = _available()
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        free = free if limit == "max" else min(free, int(limit) - int(used))
    except OSError:
        pass
    return _HOST_SHARE * max(0, free)


def _available(meminfo: Path = Path("/proc/meminfo")) -> int:
    """The available memory of this host; all of it where the system does not say, as on macOS."""
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = (line.split() for line in meminfo.read_text().splitlines())
    return next(1024 * int(size) for name, size, *_ in fields if name == "MemAvailable:")


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
