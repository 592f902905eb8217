"""A generator that samples with a diffusers pipeline, and reads features with one more call of its denoiser."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from factory.config.prompts import Prompt
from factory.config.recipe import Recipe
from factory.config.vocabulary import caption
from factory.errors import UserError
from factory.generator.determinism import be_deterministic
from factory.generator.families import PIPELINES, default_feature_blocks, default_read_blocks
from factory.generator.finite import check_finite
from factory.generator.interface import (
    ATTENTION,
    CLASS_EMBEDDINGS,
    CROSS_ATTENTION,
    FEATURES,
    HALVES,
    LATENT,
    Attention,
    Captured,
    Generated,
    Request,
)
from factory.generator.latents import packed, unpacked
from factory.generator.layers import transformer_blocks
from factory.generator.layout import default_size
from factory.generator.load import load_pipeline
from factory.generator.memory import FittingParts
from factory.generator.noise import Mixture, mixture
from factory.generator.placement import use_channels_last
from factory.generator.reading import OTHER_GROUPS, Reader, Reading, Target, TextGroups
from factory.generator.sampler import Conditions, Sampler, tensors_of
from factory.generator.text_groups import text_groups

_UNTILED = 1024
"""Images with a longer side are decoded and encoded in overlapping tiles."""


class PipelineGenerator:
    """Samples in micro-batches with the call of the pipeline and one noise generator per image.

    `needs` names the tensors to capture (see `factory.generator.interface`). Capturing does not change the images: it
    takes one call of the denoiser on the finished latents, to which noise with the level and seed of the recipe is
    added, the same for all images. Give the `pipeline` of another generator with the same model to avoid loading it
    again.

    `pixels` is the (height, width) of the images, and `level` the noise level (0 to 1) at which the denoiser is read.
    """

    def __init__(
        self, recipe: Recipe, device: str = "cpu", needs: frozenset[str] = frozenset(), pipeline: Any = None
    ) -> None:
        self.recipe, self.settings, self.device, self.needs = recipe, recipe.generator, device, needs
        be_deterministic(device, tf32=self.settings.dtype == "tf32")
        self.pipeline = pipeline or load_pipeline(self.settings, device, recipe.engine.offload)
        self.family = PIPELINES[type(self.pipeline).__name__]
        # The model's own scheduler defines the noise levels; in calls, the solver of the recipe replaces it.
        self.scheduler = self.pipeline.scheduler
        denoiser, vae = getattr(self.pipeline, self.family.denoiser).eval(), self.pipeline.vae.eval()
        by_input = self.family.guided_by_input(type(self.pipeline).__name__, denoiser.config)
        if HALVES in needs and (by_input or not self.family.is_unet):
            reason = "takes the guidance scale as an input" if by_input else f"is of the family {self.family.name}"
            raise UserError(
                f"this grounder reads both halves of a U-Net's classifier-free guidance, but {self.settings.model} "
                f"{reason}; use the module guided or paper."
            )
        if self.settings.channels_last:
            use_channels_last(denoiser)
            use_channels_last(vae)
        factor = int(self.pipeline.vae_scale_factor)
        self.pixels = self._size(denoiser.config, factor)
        cell = self.family.pixels_per_token(factor, denoiser.config)
        self._grid = (self.pixels[0] // cell, self.pixels[1] // cell)
        # AutoencoderTiny needs little memory, and its tiling is correct only for 8 pixels per latent.
        if max(self.pixels) > _UNTILED and type(vae).__name__ == "AutoencoderKL":
            vae.enable_tiling()
        self._sampler = Sampler(self.pipeline, self.family, self.settings, self.pixels)
        self._reader = Reader(denoiser, self.family, self._grid, self._target(denoiser))
        level = recipe.masks.noise_level
        self.level = self.family.noise_level if level is None else level
        self._parts = FittingParts(f"one image of {self.pixels[1]} x {self.pixels[0]} pixels by {self.settings.model}")

    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """Generate one micro-batch, in parts if it does not fit into GPU memory.

        On a CPU, the number of threads is that of the recipe, regardless of the setting of the process.
        """
        torch.set_num_threads(self.settings.threads)
        return self._parts.apply(self._generate, requests)

    @torch.no_grad()  # not `inference_mode`, in which the weights of an offloaded model in 8 bits cannot be moved
    def _generate(self, requests: Sequence[Request]) -> list[Generated]:
        random = [torch.Generator().manual_seed(request.seed) for request in requests]
        prompts = [request.prompt for request in requests]
        sampled = self._sampler.sample([prompt.text for prompt in prompts], random)
        latents = unpacked(sampled.latents, self._grid) if self.family.packed else sampled.latents
        reading = Reading()
        if self.needs & {ATTENTION, CROSS_ATTENTION, FEATURES}:
            reading = self._read(latents, prompts, None)
        embeddings = self._class_embeddings(prompts)
        self._sampler.free()  # for the grounder and the detector
        return [
            self._result(reading, k, prompt, sampled.images[k], latents[k], embeddings)
            for k, prompt in enumerate(prompts)
        ]

    @torch.no_grad()
    def read(self, latents: Tensor, prompts: Sequence[Prompt], levels: Sequence[float] | None = None) -> Captured:
        """Reproduce what `generate` captured for images from their latents, with one call of the denoiser.

        `latents` are (B, C, h, w). `levels` are the noise levels that they already have; noise is added to those with a
        level of 0, the default. Autocast applies to the call.
        """
        reading = self._read(latents.to(self.device), prompts, levels)
        return Captured(reading.blocks, reading.cross_attention, self._class_embeddings(prompts))

    @torch.no_grad()
    def attention(self, latents: Tensor, prompts: Sequence[Prompt]) -> list[Attention]:
        """The attention for images, from their clean latents (B, C, h, w)."""
        reading = self._read(latents.to(self.device), prompts, None)
        return [self._attention(reading, k, prompt) for k, prompt in enumerate(prompts)]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a latent of a U-Net."""
        return int(self._sampler.denoiser.config.in_channels), *self._grid

    def conditions(self, prompts: Sequence[Prompt]) -> Conditions:
        """The denoiser's arguments for these prompts, without guidance."""
        return self._sampler.conditions([prompt.text for prompt in prompts])

    def call_denoiser(self, conditions: Conditions, latents: Tensor, timestep: float) -> Tensor:
        """The denoiser's output, float32 (B, C, h, w), for noisy latents of this shape, without guidance."""
        arguments = self._arguments(conditions, latents, [Mixture(1.0, 0.0, timestep)] * len(latents))
        output: Tensor = self._sampler.denoiser(**{**arguments, "return_dict": False})[0]
        return output.float()

    def _size(self, denoiser: Any, factor: int) -> tuple[int, int]:
        """(height, width) of the images, in pixels."""
        height, width = self.settings.height, self.settings.width
        if height is not None and width is not None:
            return height, width
        default = default_size(self.family, denoiser, factor)
        assert default is not None, "`check_layout` requires a size"
        return height or default[0], width or default[1]

    def _target(self, denoiser: Any) -> Target:
        if self.family.is_unet:
            return Target(self.needs)
        count = len(transformer_blocks(denoiser, self.family))
        chosen = self.recipe.masks.blocks
        read = default_read_blocks(self.family, count) if chosen is None else chosen
        return Target(self.needs, read, default_feature_blocks(self.family, count))

    def _read(self, latents: Tensor, prompts: Sequence[Prompt], levels: Sequence[float] | None) -> Reading:
        both = HALVES in self.needs
        conditions = self._sampler.conditions([prompt.text for prompt in prompts], both)
        present = [0.0] * len(latents) if levels is None else list(levels)
        mixtures = [mixture(self.scheduler, level or self.level) for level in present]
        random = torch.Generator().manual_seed(self.recipe.masks.noise_seed)
        noise = torch.randn((1, *latents.shape[1:]), generator=random).to(latents.device)
        noisy = torch.stack(
            [
                latent if level else mixed.scale * (mixed.signal * latent + mixed.noise * noise[0])
                for latent, level, mixed in zip(latents, present, mixtures, strict=True)
            ]
        )
        if both:
            noisy, mixtures = torch.cat([noisy, noisy]), mixtures + mixtures
        texts = self._texts(conditions, prompts) if self.needs & {ATTENTION, CROSS_ATTENTION} else None
        reading = self._reader.read(self._arguments(conditions, noisy, mixtures), len(prompts), texts)
        for value in tensors_of(reading.output):
            check_finite(value, self.family.denoiser_name, self.settings)
        return reading

    def _arguments(self, conditions: Conditions, latents: Tensor, mixtures: Sequence[Mixture]) -> dict[str, Any]:
        """The denoiser's arguments with other latents and times."""
        family, before = self.family, conditions.arguments
        if family.packed:
            latents = packed(latents)
        earlier, time = before[family.latents], before[family.time]
        latents = latents.to(earlier[0].dtype if family.listed else earlier.dtype)
        if self.settings.channels_last and latents.ndim == 4:
            latents = latents.contiguous(memory_format=torch.channels_last)
        times = [family.denoiser_time(mixed.timestep, self._sampler.denoiser.config) for mixed in mixtures]
        shared = not isinstance(time, Tensor) or time.ndim == 0
        values = torch.tensor(times[0] if shared and len(set(times)) == 1 else times, device=latents.device)
        return {
            **before,
            family.latents: list(latents.unsqueeze(2).unbind(0)) if family.listed else latents,
            family.time: values.to(time.dtype) if isinstance(time, Tensor) and not shared else values,
        }

    def _texts(self, conditions: Conditions, prompts: Sequence[Prompt]) -> TextGroups:
        """The groups of the denoiser's text columns, on the device."""
        states = conditions.arguments[self.family.text]
        length = max(len(state) for state in states) if isinstance(states, list) else int(states.shape[1])
        texts = text_groups(conditions.tokens, prompts, self.pipeline, length)
        return TextGroups(texts.groups.to(self.device), texts.is_text.to(self.device))

    def _result(
        self, reading: Reading, index: int, prompt: Prompt, image: Any, latent: Tensor, embeddings: Tensor | None
    ) -> Generated:
        """One image of the micro-batch with its captured tensors."""
        count = len(prompt.classes)
        return Generated(
            image=image,
            attention=self._attention(reading, index, prompt) if ATTENTION in self.needs else None,
            features={name: block[index] for name, block in reading.blocks.items()},
            cross_attention={name: maps[index][:, :count] for name, maps in reading.cross_attention.items()},
            class_embeddings=None if embeddings is None else embeddings[index, :count],
            latent=latent.cpu().numpy().astype(np.float16) if LATENT in self.needs else None,
        )

    def _attention(self, reading: Reading, index: int, prompt: Prompt) -> Attention:
        count = len(prompt.classes)
        cross = {}
        for shape, total in reading.cross.items():
            maps = total[index] / reading.layers[shape]
            cross[shape] = torch.cat([maps[:count], maps[-OTHER_GROUPS:]]).cpu().numpy()
        if not reading.self_attention:
            return Attention(cross, reading.layers)
        finest = max(reading.self_attention, key=lambda shape: shape[0] * shape[1])
        self_attention = functional.normalize(reading.self_attention[finest][index], p=1, dim=1)
        return Attention(cross, reading.layers, self_attention.cpu().numpy(), finest)

    def _class_embeddings(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """The embeddings of each prompt's classes, float32 (B, K, channels); 0 where a prompt has fewer than K."""
        if CLASS_EMBEDDINGS not in self.needs:
            return None
        phrases = sorted({phrase for prompt in prompts for phrase in prompt.phrases})
        captions = [Prompt(caption([phrase]), (phrase,), (phrase,)) for phrase in phrases]
        conditions = self.conditions(captions)
        groups = self._texts(conditions, captions).groups[:, :, 0]
        states = conditions.arguments[self.family.text]
        by_phrase: dict[str, Tensor] = {}
        for k, phrase in enumerate(phrases):
            state = states[k].float()
            by_phrase[phrase] = state[groups[k, : len(state)].bool()].mean(0)
        max_classes = max(len(prompt.classes) for prompt in prompts)
        padding = torch.zeros_like(next(iter(by_phrase.values())))
        of_prompts = [[by_phrase[phrase] for phrase in prompt.phrases] for prompt in prompts]
        return torch.stack([torch.stack(found + [padding] * (max_classes - len(found))) for found in of_prompts])
