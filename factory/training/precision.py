"""Which arithmetic pays on which device."""

import torch


def bfloat16_pays(kind: str) -> bool:
    """Whether bfloat16 is faster than float32: on GPUs, and on CPUs that multiply in it; others take twice as long."""
    able = torch.cpu.get_capabilities()
    return kind != "cpu" or bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def autocast(device: str) -> torch.autocast:
    """bfloat16 autocast on `device` (as in `cuda:1`) where it pays, else none."""
    kind = device.split(":")[0]
    return torch.autocast(kind, torch.bfloat16, enabled=bfloat16_pays(kind))
