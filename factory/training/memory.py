"""Errors of a GPU that has too little memory. PyTorch is imported only once an error occurs."""

from collections.abc import Iterator
from contextlib import contextmanager

from factory.errors import GpuError, one_line

_ALLOCATION_FAILED = ("error: out of memory", "STATUS_ALLOC_FAILED")
"""Messages of CUDA and its libraries for what torch's allocator reports as OutOfMemoryError."""


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
