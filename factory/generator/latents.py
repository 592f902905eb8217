"""Latents outside the call of a pipeline: their packed form, and the autoencoder for the inversion of real images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from factory.config.sections import GeneratorRecipe
from factory.dataset.records import Image
from factory.generator.finite import check_finite

_ENCODED_TOGETHER = 2**21
"""Pixels that the autoencoder processes at a time, to limit memory."""


def packed(latents: Tensor) -> Tensor:
    """Convert (B, C, h, w) to the sequence (B, h * w, C) that packed denoisers read."""
    return latents.flatten(2).transpose(1, 2)


def unpacked(latents: Tensor, grid: tuple[int, int]) -> Tensor:
    """The reverse of `packed`: (B, h * w, C) as (B, C, h, w), where `grid` is (h, w)."""
    return latents.transpose(1, 2).reshape(len(latents), -1, *grid)


class Autoencoder:
    """The autoencoder of a U-Net's pipeline, between images and latents in the sampler's space."""

    def __init__(self, pipeline: Any, settings: GeneratorRecipe, device: str, size: tuple[int, int]) -> None:
        self._vae, self._settings, self._device = pipeline.vae, settings, device
        # That of Stable Diffusion XL overflows in float16; its pipeline converts it for each call.
        if self._vae.dtype == torch.float16 and getattr(self._vae.config, "force_upcast", False):
            self._vae.to(dtype=torch.float32)
        self._together = max(1, _ENCODED_TOGETHER // (size[0] * size[1]))

    def encode(self, images: NDArray[np.uint8]) -> Tensor:
        """Latents, float32 (B, C, h, w), of images, uint8 RGB (B, height, width, 3): the mean of the distribution."""
        pixels = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        encoded = [self._vae.encode(part.to(self._vae.dtype)) for part in self._parts(pixels)]
        means = [part.latents if hasattr(part, "latents") else part.latent_dist.mode() for part in encoded]
        mean = torch.cat(means).float()
        check_finite(mean, "the autoencoder's encoder", self._settings)
        shift, scale = self._statistics()
        latents: Tensor = (mean - shift) * scale
        return latents

    def decode(self, latents: Tensor) -> list[Image]:
        """Images, uint8 RGB (height, width, 3) each, of latents (B, C, h, w)."""
        shift, scale = self._statistics()
        scaled = (latents / scale + shift).to(self._vae.dtype)
        pixels = torch.cat([self._vae.decode(part).sample.float() for part in self._parts(scaled)])
        check_finite(pixels, "the autoencoder's decoder", self._settings)
        pixels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return list(pixels.permute(0, 2, 3, 1).cpu().numpy())

    def _parts(self, batch: Tensor) -> Sequence[Tensor]:
        return [batch[start : start + self._together] for start in range(0, len(batch), self._together)]

    def _statistics(self) -> tuple[Any, Any]:
        """(shift, scale) from the autoencoder's latents to the U-Net's: (latents - shift) * scale."""
        config = self._vae.config
        scale, shift = float(config.scaling_factor), float(getattr(config, "shift_factor", None) or 0)
        mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or deviation is None:
            return shift, scale
        means, deviations = (torch.tensor(v, device=self._device).view(1, -1, 1, 1) for v in (mean, deviation))
        return means, scale / deviations
