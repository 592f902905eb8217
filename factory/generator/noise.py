"""Noise levels as shares, regardless of the units of the scheduler: 0 is a clean latent, 1 is pure noise.

The share of a latent `signal * clean + noise * gaussian` is noise / (signal + noise). For flow matching it is sigma;
timestep 100 of Stable Diffusion is 0.256.
"""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Mixture:
    """The input of a denoiser at a noise level: scale * (signal * clean + noise * gaussian), at `timestep`."""

    signal: float
    noise: float
    timestep: float
    scale: float = 1.0


def mixture(scheduler: Any, level: float) -> Mixture:
    """The mixture for a noise level, 0 to 1, of a scheduler of diffusers; its nearest level is used."""
    if is_flow(type(scheduler).__name__, scheduler.config):
        return Mixture(1 - level, level, level * scheduler.config.num_train_timesteps)
    if hasattr(scheduler, "precondition_inputs"):
        sigma = level / (1 - level)
        scale = float(scheduler.precondition_inputs(torch.ones(()), torch.tensor(sigma)))
        return Mixture(1.0, sigma, float(scheduler.precondition_noise(torch.tensor(sigma))), scale)
    timestep = int((noise_levels(scheduler.alphas_cumprod) - level).abs().argmin())
    alpha = float(scheduler.alphas_cumprod[timestep])
    return Mixture(alpha**0.5, (1 - alpha) ** 0.5, timestep)


def is_flow(kind: str, config: Any) -> bool:
    """Whether a scheduler of this class and configuration mixes latents linearly, as flow matching does."""
    return kind.startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))


def noise_levels(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """The noise share of each timestep, float64 (T,), from the cumulative alphas (T,)."""
    alphas = alphas_cumprod.detach().cpu().double()
    signal, noise = alphas.sqrt(), (1 - alphas).sqrt()
    return noise / (signal + noise)
