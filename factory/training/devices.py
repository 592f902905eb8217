"""Selects the device that a model runs on. PyTorch is imported only to look for GPUs."""

import re

from factory.errors import UserError

AUTO = "auto"
_GPU = re.compile(r"cuda(?::(\d{1,4}))?")


def check_device_name(name: str) -> None:
    """UserError unless the name is that of a device, which need not be available."""
    if name not in (AUTO, "cpu") and not _GPU.fullmatch(name):
        raise _unknown(name)


def chosen_device(name: str) -> str:
    """Resolve `auto` to `cuda` if there is a GPU, else to `cpu`. UserError for any other name that is not available."""
    if name == AUTO:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(name)
    return name


def check_device(name: str) -> None:
    """UserError unless the device is available; `auto` is not a device."""
    if name == "cpu":
        return
    gpu = _GPU.fullmatch(name)
    if gpu is None:
        raise _unknown(name)
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"the device {name!r} is not available, because PyTorch finds no GPU; choose --device cpu.")
    if gpu[1] is not None and int(gpu[1]) >= torch.cuda.device_count():
        raise UserError(
            f"the device {name!r} is not available, because this machine has {torch.cuda.device_count()} GPUs, "
            f"numbered from 0; choose one of them."
        )


def _unknown(name: str) -> UserError:
    return UserError(f"there is no device {name!r}; choose {AUTO}, cpu, cuda or cuda:N.")
