"""Selects the device that a model runs on."""

import torch

from factory.errors import UserError

AUTO = "auto"


def chosen_device(name: str) -> str:
    """Resolve `auto` to `cuda` if there is a GPU, else to `cpu`. UserError for any other name that is not available."""
    if name == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(name)
    return name


def check_device(name: str) -> None:
    """UserError unless the device is available."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"there is no device {name!r}; choose {AUTO}, cpu, cuda or cuda:N.")
    if device.type == "cpu":
        return
    if not torch.cuda.is_available():
        raise UserError(f"the device {name!r} is not available, because PyTorch finds no GPU; choose --device cpu.")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise UserError(
            f"the device {name!r} is not available, because this machine has {torch.cuda.device_count()} GPUs, "
            f"numbered from 0; choose one of them."
        )
