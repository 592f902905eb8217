"""Real images as if they had been generated: brought back to noise by deterministic DDIM (Song et al., ICLR 2021)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pictures
from torch import Tensor

from factory.config.prompts import Prompt
from factory.config.recipe import Recipe
from factory.config.sections import RealRecipe
from factory.config.vocabulary import Vocabulary
from factory.dataset.masks import IGNORE
from factory.dataset.records import Image
from factory.errors import UserError
from factory.generator.interface import Generated, Request
from factory.generator.pipeline import PipelineGenerator
from factory.labelled.folders import open_labelled
from factory.labelled.interface import LabelledFolder, LabelledImage

_NOISE_SEED = 0


def open_folder(real: RealRecipe, vocabulary: Vocabulary, checked: bool = False) -> LabelledFolder:
    """The labelled images of a recipe; UserError where they are not there, and `checked` as in `open_labelled`."""
    if real.dataset == "coco" and real.annotations is None:
        raise UserError("COCO's labels are in a file; name it with --annotations instances_train2017.json.")
    annotations = Path(real.annotations) if real.dataset == "coco" and real.annotations else None
    return open_labelled(Path(real.root), real.image_set, annotations, vocabulary, checked=checked)


class InvertingGenerator:
    """A generator whose images are a folder's.

    With the prompt of its classes and without guidance, an image's latents are followed to noise and back; the latent
    at the feature step of the way back is what a generated image would have had there. `psnr` (dB) tells how near the
    decoded end of the way is to the image. The method "noise" adds noise of a fixed seed to the encoded image instead;
    its `psnr` is that of the autoencoder.
    """

    def __init__(self, recipe: Recipe, device: str = "cpu") -> None:
        assert recipe.real is not None
        self._recipe, self._real, self._device = recipe, recipe.real, device
        self._vocabulary = recipe.vocabulary()
        self._folder = open_folder(recipe.real, self._vocabulary)
        self._model = PipelineGenerator(recipe, device)

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """One micro-batch: the images of the requests' indices."""
        torch.set_num_threads(self._recipe.generator.threads)
        loaded = [self._folder.load(self._real.keys[request.index]) for request in requests]
        images = [_squared(row, self._model.pixels) for row in loaded]
        prompts = [request.prompt for request in requests]
        latents, time, back = self.round_trip([image for image, _ in images], prompts)
        results = []
        for place, (image, labels) in enumerate(images):
            results.append(
                Generated(
                    image=image,
                    latent=latents[place].cpu().numpy().astype(np.float16),
                    timestep=time,
                    labels=self._of_prompt(labels, prompts[place]),
                    measured={"psnr": psnr(image, back[place])},
                )
            )
        return results

    @torch.inference_mode()
    def round_trip(self, images: Sequence[Image], prompts: list[Prompt]) -> tuple[Tensor, int, Sequence[Image]]:
        """(latents at the feature step, its timestep, the images as they come back), images of the model's size."""
        clean = self._model.encode_images(np.stack(images))
        target = self._recipe.masks.timesteps[0]
        if self._real.method == "noise":
            latents, time, end = self._noised(clean, target), target, clean
        else:
            latents, time, end = self._there_and_back(clean, prompts, target)
        return latents, time, self._model.decode_latents(end)

    def _there_and_back(self, clean: Tensor, prompts: list[Prompt], target: int) -> tuple[Tensor, int, Tensor]:
        """(latents at the feature step, its timestep, latents at the end of the way back)."""
        last = int(self._model.alphas.shape[0]) - 1
        times = np.linspace(0, last, self._real.steps + 1).round().astype(int).tolist()
        latents = clean
        for now, then in pairwise(times):
            latents = self._step(latents, prompts, now, then)
        kept = latents
        nearest = min(times[1:], key=lambda time: abs(time - target))
        for now, then in pairwise(times[::-1]):
            if now == nearest:
                kept = latents
            latents = self._step(latents, prompts, now, then)
        return kept, nearest, latents

    def _step(self, latents: Tensor, prompts: list[Prompt], now: int, then: int) -> Tensor:
        """One step of the deterministic path, in either direction."""
        clean, noise = self._model.denoise(latents, now, prompts)
        kept = self._model.alphas[then]
        moved: Tensor = kept**0.5 * clean + (1 - kept) ** 0.5 * noise
        return moved

    def _noised(self, clean: Tensor, time: int) -> Tensor:
        random = torch.Generator().manual_seed(_NOISE_SEED)
        noise = torch.randn((1, *clean.shape[1:]), generator=random).to(clean.device)
        kept = self._model.alphas[time]
        noised: Tensor = kept**0.5 * clean + (1 - kept) ** 0.5 * noise
        return noised

    def _of_prompt(self, labels: NDArray[np.uint8], prompt: Prompt) -> NDArray[np.uint8]:
        """Labels that count in the vocabulary as labels that count in the prompt."""
        result = np.where(labels == IGNORE, IGNORE, 0).astype(np.uint8)
        for place, name in enumerate(prompt.classes, 1):
            result[labels == self._vocabulary.names.index(name) + 1] = place
        return result


def psnr(image: Image, other: Image) -> float:
    """Peak signal-to-noise ratio of two uint8 images in dB, at most 99."""
    error = float(np.square(image.astype(np.float64) - other.astype(np.float64)).mean())
    return round(min(99.0, 10 * math.log10(255**2 / max(error, 1e-9))), 2)


def _squared(row: LabelledImage, size: tuple[int, int]) -> tuple[Image, NDArray[np.uint8]]:
    """An image and its labels in the model's (height, width), whatever their shape was."""
    picture = Pictures.fromarray(row.image).resize((size[1], size[0]), Pictures.Resampling.BICUBIC, reducing_gap=3.0)
    labels = Pictures.fromarray(row.labels).resize((size[1], size[0]), Pictures.Resampling.NEAREST)
    return np.asarray(picture), np.asarray(labels)


def present(labels: NDArray[np.uint8], vocabulary: Vocabulary, min_share: float) -> list[str]:
    """The classes that cover at least a share of a picture, the largest first."""
    counts: Any = np.bincount(labels.ravel(), minlength=256)
    places = [k for k in range(1, len(vocabulary.classes) + 1) if counts[k] >= max(1.0, min_share * labels.size)]
    return [vocabulary.names[k - 1] for k in sorted(places, key=lambda k: (-counts[k], k))]
