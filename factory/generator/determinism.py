"""Settings of a GPU process, so that the same inputs give the same bytes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def be_deterministic(device: str, tf32: bool) -> None:
    """Select deterministic kernels, and TF32 or float32 products, for all models of a process that uses `device`."""
    if not device.startswith("cuda"):
        return
    import torch

    # cuBLAS reads it when it is first used. Without it, torch calls every matrix product non-deterministic.
    os.environ.setdefault(_CUBLAS, ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.use_deterministic_algorithms(True, warn_only=True)
    # By default this mode fills each new tensor with NaN: a model takes twice its memory while it is loaded.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def own_kernels_of_torchvision() -> Iterator[None]:
    """Let torchvision use its own RoIAlign kernel, whose forward pass is deterministic.

    In torch's deterministic mode, torchvision uses a Python implementation on GPUs, because of the backward pass. With
    the settings of detectron2, this implementation needs terabytes of memory.
    """
    import torch

    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
