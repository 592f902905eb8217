"""Pictures from a text-to-image pipeline in batches, each from a seed of its own."""

from collections.abc import Callable, Sequence

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from factory.training.precision import autocast

STEPS = 12
GUIDANCE = 3.0


def sample(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch: int = 25,
    progress: Callable[[int], None] = lambda done: None,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> list[Image.Image]:
    """One picture per prompt; noise comes from a CPU generator per picture, whatever the device."""
    assert len(prompts) == len(seeds)
    pictures: list[Image.Image] = []
    device = pipeline.device.type
    for first in range(0, len(prompts), batch):
        chosen = slice(first, first + batch)
        noise = [torch.Generator().manual_seed(seed) for seed in seeds[chosen]]
        with autocast(device), torch.no_grad():
            drawn = pipeline(
                list(prompts[chosen]), num_inference_steps=steps, guidance_scale=guidance, generator=noise
            ).images
        pictures += drawn
        progress(len(pictures))
    return pictures
