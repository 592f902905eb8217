"""Samples images from a text-to-image pipeline in batches, with one seed per image."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from factory.config.guidance import GuidanceSchedule
from factory.config.stickers import EMBEDDED_MODELS, GUIDANCE, SCHEDULE, STEPS, STICKERS, TURBO
from factory.generator.guidance import guidance_arguments
from factory.training.precision import autocast


@dataclass(frozen=True)
class Sampling:
    """Sampling options: solver steps, the scale of classifier-free guidance (1 disables it), and its schedule."""

    steps: int = STEPS
    guidance: float = GUIDANCE
    schedule: GuidanceSchedule = SCHEDULE

    @classmethod
    def of_model(cls, model: str) -> "Sampling":
        """The default options of an embedded model, or of a pipeline folder that `factory stickers train` has written.

        A folder with a DDIM scheduler is sampled as `stickers-turbo`, because only few-step models have one.
        """
        name = model
        if model not in EMBEDDED_MODELS:
            index = json.loads((Path(model) / "model_index.json").read_text())
            name = TURBO if "DDIMScheduler" in index["scheduler"] else STICKERS
        embedded = EMBEDDED_MODELS[name]
        return cls(embedded.steps, embedded.guidance, embedded.schedule)


def sample(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch: int = 25,
    progress: Callable[[int], None] = lambda done: None,
    sampling: Sampling = Sampling(),
) -> list[Image.Image]:
    """One image per prompt. The noise of each image comes from its own CPU generator, regardless of the device."""
    assert len(prompts) == len(seeds)
    pictures: list[Image.Image] = []
    device = pipeline.device.type
    scales = guidance_arguments(sampling.guidance, sampling.schedule, sampling.steps)
    for first in range(0, len(prompts), batch):
        selected = slice(first, first + batch)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[selected]]
        with autocast(device), torch.no_grad():
            pictures += pipeline(
                list(prompts[selected]), num_inference_steps=sampling.steps, generator=generators, **scales
            ).images
        progress(len(pictures))
    return pictures
