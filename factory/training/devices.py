"""Which device a model runs on."""

import torch

from factory.errors import UserError

AUTO = "auto"


def chosen_device(named: str) -> str:
    """`auto` as `cuda` where there is a GPU and as `cpu` elsewhere; any other name as it is. UserError for none."""
    if named == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(named)
    return named


def check_device(named: str) -> None:
    """UserError unless this machine has the device."""
    try:
        device = torch.device(named)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"There is no device {named!r}; choose {AUTO}, cpu, cuda or cuda:N.")
    if device.type == "cpu":
        return
    if not torch.cuda.is_available():
        raise UserError(f"The device {named!r} was asked for and no GPU is here; choose --device cpu.")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise UserError(
            f"The device {named!r} was asked for and this machine has {torch.cuda.device_count()} GPUs, numbered from "
            f"0; choose one of them."
        )
