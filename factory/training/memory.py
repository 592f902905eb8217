"""The free memory of a device, and errors of a GPU that has too little. Importing this does not import PyTorch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from factory.errors import GpuError, one_line

_ALLOCATION_FAILED = ("error: out of memory", "STATUS_ALLOC_FAILED")
"""Messages of CUDA and its libraries for what torch's allocator reports as OutOfMemoryError."""
_GPU_SHARE, _HOST_SHARE = 0.85, 0.5
"""Shares of the free memory that a step may use; a host needs memory for shards, too."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, or a library that allocates memory itself, ran out of GPU memory."""
    import torch

    allocation_failed = isinstance(error, RuntimeError) and any(part in str(error) for part in _ALLOCATION_FAILED)
    return allocation_failed or isinstance(error, torch.OutOfMemoryError)


@contextmanager
def enough_memory(what: str, remedy: str) -> Iterator[None]:
    """GpuError if the GPU has too little memory for `what` happens in the `with` block; `remedy` says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise GpuError(
            f"the GPU has too little free memory for {what} ({one_line(error, 120)}); end other programs on it, or "
            f"{remedy}."
        ) from error


def free_bytes(device: str) -> float:
    """The part of a device's free memory that a training step or a batch may use, in bytes."""
    if device.startswith("cuda"):
        import torch

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
