"""Selects the precision that is fastest on a device."""

import torch


def bfloat16_is_faster(kind: str) -> bool:
    """Whether bfloat16 is faster than float32. It is half as fast on CPUs without bfloat16 instructions."""
    capabilities = torch.cpu.get_capabilities()
    return kind != "cpu" or bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(device: str, enabled: bool = True) -> torch.autocast:
    """bfloat16 autocast on `device` (such as `cuda:1`) if it is `enabled` and faster, else disabled autocast."""
    kind = device.split(":")[0]
    return torch.autocast(kind, torch.bfloat16, enabled=enabled and bfloat16_is_faster(kind))
