"""Inversion of real images to noise and back by deterministic DDIM (Song et al., ICLR 2021)."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pictures
from torch import Tensor

from factory.config.prompts import Prompt
from factory.config.recipe import Recipe
from factory.dataset.masks import IGNORE
from factory.dataset.records import Image
from factory.generator.interface import Generated, Request
from factory.generator.latents import Autoencoder
from factory.generator.memory import FittingParts
from factory.generator.noise import noise_levels
from factory.generator.pipeline import PipelineGenerator
from factory.generator.real_images import open_folder
from factory.generator.sampler import Conditions
from factory.labelled.interface import LabelledImage


class InvertingGenerator:
    """A generator whose images come from a labelled folder.

    DDIM takes the latents of an image to noise and back, with the prompt of its classes and without guidance. During
    denoising, the latent nearest to the noise level of the recipe is kept, in place of that of a generated image.
    `psnr` (dB) compares the decoded result with the image. The method "noise" keeps the latent of the encoded image, to
    which noise is added when features are read; its `psnr` is that of the autoencoder.
    """

    def __init__(self, recipe: Recipe, device: str = "cpu") -> None:
        assert recipe.real is not None
        self._recipe, self._real, self._device = recipe, recipe.real, device
        self._vocabulary = recipe.vocabulary()
        self._folder = open_folder(recipe.real, self._vocabulary)
        self._model = PipelineGenerator(recipe, device)
        self._autoencoder = Autoencoder(self._model.pipeline, recipe.generator, device, self._model.pixels)
        height, width = self._model.pixels
        self._parts = FittingParts(f"one image of {width} x {height} pixels and {recipe.generator.model}", "inverts")
        self._alphas: Tensor = self._model.scheduler.alphas_cumprod.to(device)

    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """Invert the images at the indices of a micro-batch, in parts if they do not fit into GPU memory."""
        torch.set_num_threads(self._recipe.generator.threads)
        return self._parts.apply(self._invert, requests)

    @torch.no_grad()
    def _invert(self, requests: Sequence[Request]) -> list[Generated]:
        loaded = [self._folder.load(self._real.keys[request.index]) for request in requests]
        images = [_resized(image, self._model.pixels) for image in loaded]
        prompts = [request.prompt for request in requests]
        latents, level, restored = self.round_trip([image for image, _ in images], prompts)
        return [
            Generated(
                image=image,
                latent=latents[k].cpu().numpy().astype(np.float16),
                noise_level=level,
                labels=self._prompt_labels(labels, prompts[k]),
                measured={"psnr": psnr(image, restored[k])},
            )
            for k, (image, labels) in enumerate(images)
        ]

    @torch.no_grad()
    def round_trip(self, images: Sequence[Image], prompts: list[Prompt]) -> tuple[Tensor, float, Sequence[Image]]:
        """(latents, their noise level, restored images) for images of the size of the model."""
        clean = self._autoencoder.encode(np.stack(images))
        if self._real.method == "noise":
            return clean, 0.0, self._autoencoder.decode(clean)
        latents, level, end = self._invert_and_restore(clean, self._model.conditions(prompts))
        return latents, level, self._autoencoder.decode(end)

    def _invert_and_restore(self, clean: Tensor, conditions: Conditions) -> tuple[Tensor, float, Tensor]:
        """(latents nearest to the noise level during denoising, their noise level, latents at the end)."""
        times = np.linspace(0, len(self._alphas) - 1, self._real.steps + 1).round().astype(int).tolist()
        latents = clean
        for start, stop in pairwise(times):
            latents = self._step(latents, conditions, start, stop)
        levels = noise_levels(self._alphas)
        nearest = min(times[1:], key=lambda time: abs(float(levels[time]) - self._model.level))
        at_level = latents
        for start, stop in pairwise(times[::-1]):
            if start == nearest:
                at_level = latents
            latents = self._step(latents, conditions, start, stop)
        return at_level, round(float(levels[nearest]), 4), latents

    def _step(self, latents: Tensor, conditions: Conditions, start: int, stop: int) -> Tensor:
        """One deterministic DDIM step between two timesteps, in either direction."""
        clean, noise = self._predicted(latents, conditions, start)
        alpha = self._alphas[stop]
        moved: Tensor = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
        return moved

    def _predicted(self, latents: Tensor, conditions: Conditions, timestep: int) -> tuple[Tensor, Tensor]:
        """(clean latents, noise) that the model predicts from noisy latents (B, C, h, w), without guidance."""
        output = self._model.call_denoiser(conditions, latents, timestep)
        alpha = self._alphas[timestep]
        signal, sigma = alpha**0.5, (1 - alpha) ** 0.5
        kind = self._model.scheduler.config.prediction_type
        if kind == "v_prediction":
            return signal * latents - sigma * output, signal * output + sigma * latents
        if kind == "sample":
            return output, (latents - signal * output) / sigma
        return (latents - sigma * output) / signal, output

    def _prompt_labels(self, labels: NDArray[np.uint8], prompt: Prompt) -> NDArray[np.uint8]:
        """Labels numbered by the vocabulary, renumbered by the prompt's classes."""
        result = np.where(labels == IGNORE, IGNORE, 0).astype(np.uint8)
        for number, name in enumerate(prompt.classes, 1):
            result[labels == self._vocabulary.label_of(name)] = number
        return result


def psnr(image: Image, other: Image) -> float:
    """Peak signal-to-noise ratio of two uint8 images in dB, at most 99."""
    error = float(np.square(image.astype(np.float64) - other.astype(np.float64)).mean())
    return round(min(99.0, 10 * math.log10(255**2 / max(error, 1e-9))), 2)


def _resized(image: LabelledImage, size: tuple[int, int]) -> tuple[Image, NDArray[np.uint8]]:
    """An image and its labels, stretched to the model's (height, width)."""
    pixels = Pictures.fromarray(image.image).resize((size[1], size[0]), Pictures.Resampling.BICUBIC, reducing_gap=3.0)
    labels = Pictures.fromarray(image.labels).resize((size[1], size[0]), Pictures.Resampling.NEAREST)
    return np.asarray(pixels), np.asarray(labels)
