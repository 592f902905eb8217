"""Samples images from a text-to-image pipeline in batches, with one seed per image."""

from collections.abc import Callable, Sequence

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from factory.config.guidance import GuidanceSchedule
from factory.config.stickers import GUIDANCE, SCHEDULE, STEPS
from factory.generator.guidance import guidance_arguments
from factory.training.precision import autocast


def sample(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch: int = 25,
    progress: Callable[[int], None] = lambda done: None,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    schedule: GuidanceSchedule = SCHEDULE,
) -> list[Image.Image]:
    """One image per prompt. The noise of each image comes from its own CPU generator, regardless of the device."""
    assert len(prompts) == len(seeds)
    pictures: list[Image.Image] = []
    device, scales = pipeline.device.type, guidance_arguments(guidance, schedule, steps)
    for first in range(0, len(prompts), batch):
        selected = slice(first, first + batch)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[selected]]
        with autocast(device), torch.no_grad():
            pictures += pipeline(
                list(prompts[selected]), num_inference_steps=steps, generator=generators, **scales
            ).images
        progress(len(pictures))
    return pictures
