"""The generator on a diffusers pipeline of the Stable Diffusion 1, 2 or XL kind."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from factory.config.prompts import Prompt
from factory.config.recipe import Recipe
from factory.config.vocabulary import caption
from factory.dataset.records import Image
from factory.errors import UserError
from factory.generator.capture import Capture, level_shape
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
from factory.generator.load import load_pipeline
from factory.generator.schedulers import SOLVERS
from factory.generator.tokens import class_tokens

_CAPTURE_SEED = 0

_DECODED_TOGETHER = 2**21
"""Pixels that the autoencoder takes at a time: 8 images of 512 x 512, 2 of 1024 x 1024. More need much memory."""

_UNTILED = 1024
"""Images with a longer side are decoded and encoded in overlapping tiles."""


@dataclass(frozen=True)
class _Step:
    """What went into the U-Net, conditional half (B, C, h, w), and when."""

    latents: Tensor
    time: int


class PipelineGenerator:
    """Samples in micro-batches, with one noise generator per image, batched guidance and cached text embeddings.

    `needs` names what to capture (see `factory.generator.interface`); capturing does not change the images. Raises
    UserError where HALVES are to be captured while sampling without guidance.
    """

    def __init__(self, recipe: Recipe, device: str = "cpu", needs: frozenset[str] = frozenset()) -> None:
        self.recipe, self.settings, self.device, self.needs = recipe, recipe.generator, device, needs
        if HALVES in needs and recipe.masks.capture == "sampling" and self.settings.guidance <= 1:
            raise UserError(
                f"this grounder reads both halves of classifier-free guidance, and with a guidance of "
                f"{self.settings.guidance:g} there is one; give a guidance above 1."
            )
        _be_deterministic(device, tf32=self.settings.dtype == "tf32")
        self._pipeline = load_pipeline(self.settings, device)
        self._unet, self._vae = self._pipeline.unet.eval(), self._pipeline.vae.eval()
        if self.settings.channels_last:
            self._unet.to(memory_format=torch.channels_last)
            self._vae.to(memory_format=torch.channels_last)
        self._step_unet = torch.compile(self._unet) if self.settings.compile else self._unet
        if self._vae.dtype == torch.float16 and getattr(self._vae.config, "force_upcast", False):
            self._vae.to(torch.float32)
        self._encode = lru_cache(maxsize=4096)(self._encode_uncached)
        self._class_embedding = lru_cache(maxsize=4096)(self._class_embedding_uncached)
        factor = int(self._pipeline.vae_scale_factor)
        size = self._unet.config.sample_size
        native = (size, size) if isinstance(size, int) else tuple(size)
        self._latent_shape = (
            int(self._unet.config.in_channels),
            self.settings.height // factor if self.settings.height else native[0],
            self.settings.width // factor if self.settings.width else native[1],
        )
        self._pixels = (self._latent_shape[1] * factor, self._latent_shape[2] * factor)
        self._together = max(1, _DECODED_TOGETHER // (self._pixels[0] * self._pixels[1]))
        # AutoencoderTiny's tiles are right for 8 pixels to a latent only, and it needs little memory.
        if max(self._pixels) > _UNTILED and type(self._vae).__name__ == "AutoencoderKL":
            self._vae.enable_tiling()
        self._guidance_embedding = self._embedded_guidance()

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """One micro-batch. On a CPU it runs on the recipe's number of threads, whatever the process was given."""
        torch.set_num_threads(self.settings.threads)
        capture = Capture(self._unet, self.needs)
        random = [torch.Generator().manual_seed(request.seed) for request in requests]
        prompts = [request.prompt for request in requests]
        in_sampling = self.recipe.masks.capture == "sampling"
        groups = self._groups(prompts)
        latents, step = self._denoise(prompts, random, capture if in_sampling else None, groups)
        if self.needs & {ATTENTION, CROSS_ATTENTION, FEATURES, LATENT} and not in_sampling:
            step = self._look_again(latents, prompts, capture, groups)
        images = self._decode(latents)
        return [self._result(capture, place, prompt, images[place], step) for place, prompt in enumerate(prompts)]

    @torch.no_grad()
    def read(self, latents: Tensor, timesteps: int | Sequence[int], prompts: Sequence[Prompt]) -> Captured:
        """What `generate` captured of images whose `latent` and `timestep` are given, by one U-Net call.

        `latents` are (B, C, h, w), `timesteps` one for all or one for each. The call runs in bfloat16 or half
        precision where autocast is on.
        """
        capture, groups = Capture(self._unet, self.needs), self._groups(prompts)
        with capture.watching(len(prompts), groups):
            self._look(latents.to(self.device), torch.tensor(timesteps, device=self.device), prompts)
        maps = {name: self._shaped(row) for name, row in capture.cross_attention.items()}
        return Captured(capture.blocks, maps, self._class_embeddings(prompts))

    @property
    def pixels(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return self._pixels

    @property
    def alphas(self) -> Tensor:
        """The cumulative product of alphas at each of the model's timesteps, float32, on the device."""
        levels: Tensor = self._pipeline.scheduler.alphas_cumprod
        return levels.to(self.device)

    def encode_images(self, images: NDArray[np.uint8]) -> Tensor:
        """Latents, float32 (B, C, h, w), of uint8 images (B, height, width, 3): the autoencoder's mean, scaled."""
        pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        made = [self._vae.encode(part.to(self._vae.dtype)) for part in _parted(pixels, self._together)]
        means = [part.latents if hasattr(part, "latents") else part.latent_dist.mode() for part in made]
        mean = torch.cat(means).float()
        check_finite(mean, "the autoencoder's encoder", self.settings)
        shift, spread = self._latent_statistics()
        latents: Tensor = (mean - shift) * spread
        return latents

    def decode_latents(self, latents: Tensor) -> list[Image]:
        """uint8 RGB (height, width, 3) each."""
        return self._decode(latents)

    def denoise(self, latents: Tensor, timestep: int, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """(clean latents, noise) as the model sees them in noisy latents (B, C, h, w), without guidance."""
        text, extra = self._conditions([prompt.text for prompt in prompts], False)
        predicted = self._predict(self._unet, latents, torch.tensor(timestep, device=self.device), text, extra)
        kept = self.alphas[timestep]
        signal, spread = kept**0.5, (1 - kept) ** 0.5
        kind = self._pipeline.scheduler.config.prediction_type
        if kind == "v_prediction":
            return signal * latents - spread * predicted, signal * predicted + spread * latents
        if kind == "sample":
            return predicted, (latents - signal * predicted) / spread
        return (latents - spread * predicted) / signal, predicted

    def _result(self, capture: Capture, place: int, prompt: Prompt, image: Any, step: "_Step") -> Generated:
        """One image's share of what was captured of the micro-batch."""
        attention = self._attention(capture, place, prompt) if ATTENTION in self.needs else None
        features = {name: block[place] for name, block in capture.blocks.items()}
        maps = {
            name: self._shaped(row[place])[:, : len(prompt.classes)] for name, row in capture.cross_attention.items()
        }
        embeddings = self._class_embeddings([prompt])
        latent = step.latents[place].cpu().numpy().astype(np.float16) if LATENT in self.needs else None
        return Generated(
            image=image,
            attention=attention,
            features=features,
            cross_attention=maps,
            class_embeddings=None if embeddings is None else embeddings[0],
            latent=latent,
            timestep=step.time,
        )

    def _denoise(
        self,
        prompts: list[Prompt],
        random: list[torch.Generator],
        capture: Capture | None,
        groups: Tensor | None,
    ) -> "tuple[Tensor, _Step]":
        """Finished latents, float32 (B, C, h, w), and the last step that was watched.

        The noise is drawn on the CPU, so no device changes it.
        """
        scheduler = self._scheduler()
        noise = torch.cat([torch.randn((1, *self._latent_shape), generator=generator) for generator in random])
        guided = self.settings.guidance > 1 and self._guidance_embedding is None
        texts = [prompt.text for prompt in prompts]
        text, extra = self._conditions([self.settings.negative] * len(texts) + texts if guided else texts, guided)
        latents = noise.to(self.device) * scheduler.init_noise_sigma
        options = self._step_options(scheduler, random)
        watched, last = self._watched_steps(scheduler.timesteps), _Step(latents, 0)
        for step, time in enumerate(scheduler.timesteps):
            both = torch.cat([latents, latents]) if guided else latents
            given = scheduler.scale_model_input(both, time)
            if capture is not None and step in watched:
                last = _Step(given[-len(prompts) :], int(time))
                with capture.watching(len(prompts), groups):
                    predicted = self._predict(self._unet, given, time, text, extra)
            else:
                predicted = self._predict(self._step_unet, given, time, text, extra)
            if guided:
                free, held = predicted.chunk(2)
                predicted = free + self.settings.guidance * (held - free)
            latents = scheduler.step(predicted, time, latents, **options).prev_sample
        return latents, last

    def _predict(self, unet: Any, latents: Tensor, time: Any, text: Tensor, extra: dict[str, Tensor]) -> Tensor:
        given = latents.to(self._unet.dtype)
        if self.settings.channels_last:
            given = given.contiguous(memory_format=torch.channels_last)
        guidance = self._guidance_embedding
        out: Tensor = unet(
            given,
            time,
            encoder_hidden_states=text,
            timestep_cond=None if guidance is None else guidance.expand(len(given), -1),
            added_cond_kwargs=extra or None,
        ).sample
        check_finite(out, "the U-Net", self.settings)
        return out.float()

    def _look_again(self, latents: Tensor, prompts: list[Prompt], capture: Capture, groups: Tensor | None) -> "_Step":
        """One conditional call on the finished latents for each chosen noise level, with the same noise for all."""
        levels = self._pipeline.scheduler.alphas_cumprod
        random = torch.Generator().manual_seed(_CAPTURE_SEED)
        last = _Step(latents, 0)
        for time in sorted(self.recipe.masks.timesteps):
            noise = torch.randn((1, *self._latent_shape), generator=random).to(self.device)
            kept = float(levels[time])
            last = _Step(kept**0.5 * latents + (1 - kept) ** 0.5 * noise, time)
            with capture.watching(len(prompts), groups):
                self._look(last.latents, torch.tensor(time, device=self.device), prompts)
        return last

    def _look(self, latents: Tensor, times: Tensor, prompts: Sequence[Prompt]) -> None:
        """One U-Net call to be watched: conditional, and behind the unconditional half where HALVES are needed."""
        texts, both = [prompt.text for prompt in prompts], HALVES in self.needs
        text, extra = self._conditions([self.settings.negative] * len(texts) + texts if both else texts, both)
        if both:
            latents, times = torch.cat([latents, latents]), torch.cat([times, times]) if times.ndim else times
        self._predict(self._unet, latents, times, text, extra)

    def _watched_steps(self, times: Tensor) -> set[int]:
        """The solver's steps nearest to the chosen noise levels."""
        distance = [(times.float().cpu() - level).abs() for level in self.recipe.masks.timesteps]
        return {int(row.argmin()) for row in distance}

    def _decode(self, latents: Tensor) -> list[Any]:
        """uint8 RGB (height, width, 3) each."""
        shift, spread = self._latent_statistics()
        scaled = (latents / spread + shift).to(self._vae.dtype)
        pixels = torch.cat([self._vae.decode(part).sample.float() for part in _parted(scaled, self._together)])
        check_finite(pixels, "the autoencoder's decoder", self.settings)
        pixels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return list(pixels.permute(0, 2, 3, 1).cpu().numpy())

    def _latent_statistics(self) -> tuple[Any, Any]:
        """(shift, spread) between what the autoencoder makes and what the U-Net sees: (made - shift) * spread."""
        config = self._vae.config
        scale, shift = float(config.scaling_factor), float(getattr(config, "shift_factor", None) or 0)
        mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or deviation is None:
            return shift, scale
        means, deviations = (torch.tensor(row, device=self.device).view(1, -1, 1, 1) for row in (mean, deviation))
        return means, scale / deviations

    def _embedded_guidance(self) -> Tensor | None:
        """(1, channels) for a U-Net that was distilled to take the guidance as an input; None for others."""
        channels = getattr(self._unet.config, "time_cond_proj_dim", None)
        if channels is None:
            return None
        scale = torch.tensor([self.settings.guidance - 1])
        embedded: Tensor = self._pipeline.get_guidance_scale_embedding(scale, embedding_dim=channels)
        return embedded.to(self.device, self._unet.dtype)

    def _groups(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """(B, tokens, K + 3) of 0 and 1: the tokens of each class, the start token, other words, end and padding.

        K is the most classes that a prompt has; a prompt with fewer has empty groups behind its own.
        """
        if not self.needs & {ATTENTION, CROSS_ATTENTION}:
            return None
        tokenizer = self._pipeline.tokenizer
        most = max(len(prompt.classes) for prompt in prompts)
        groups = torch.zeros(len(prompts), tokenizer.model_max_length, most + 3)
        for row, prompt in zip(groups, prompts, strict=True):
            own, end = class_tokens(tokenizer, prompt)
            row[0, most], row[1:end, most + 1], row[end:, most + 2] = 1, 1, 1
            for place, positions in enumerate(own):
                row[positions, place], row[positions, most + 1] = 1, 0
        return groups.to(self.device)

    def _attention(self, capture: Capture, place: int, prompt: Prompt) -> Attention:
        count = len(prompt.classes)
        cross, layers = {}, {}
        for places, total in capture.cross.items():
            maps = self._shaped(total[place]) / capture.layers[places]
            cross[maps.shape[1], maps.shape[2]] = torch.cat([maps[:count], maps[-3:]]).cpu().numpy()
            layers[maps.shape[1], maps.shape[2]] = capture.layers[places]
        if not capture.within:
            return Attention(cross, layers)
        finest = max(capture.within)
        within = functional.normalize(capture.within[finest][place], p=1, dim=1)
        return Attention(cross, layers, within.cpu().numpy(), level_shape(finest, self._latent_shape[1:]))

    def _shaped(self, maps: Tensor) -> Tensor:
        """(..., places) to (..., h, w)."""
        return maps.reshape(*maps.shape[:-1], *level_shape(maps.shape[-1], self._latent_shape[1:]))

    def _class_embeddings(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """The embedding of each prompt's classes, (B, K, channels) float32; 0 where a prompt has fewer than K."""
        if CLASS_EMBEDDINGS not in self.needs:
            return None
        most = max(len(prompt.classes) for prompt in prompts)
        rows = [[self._class_embedding(phrase) for phrase in prompt.phrases] for prompt in prompts]
        nothing = torch.zeros_like(rows[0][0])
        return torch.stack([torch.stack(row + [nothing] * (most - len(row))) for row in rows])

    def _class_embedding_uncached(self, phrase: str) -> Tensor:
        prompt = Prompt(caption([phrase]), (phrase,), (phrase,))
        (own,), _ = class_tokens(self._pipeline.tokenizer, prompt)
        return self._encode(prompt.text, False)[0][0, own].float().mean(0)

    def _conditions(self, texts: list[str], guided: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Embeddings (len(texts), tokens, channels) and what an XL U-Net wants besides."""
        pairs = [self._encode(text, guided and k < len(texts) // 2) for k, text in enumerate(texts)]
        text = torch.cat([pair[0] for pair in pairs])
        if pairs[0][1] is None:
            return text, {}
        height, width = self._pixels
        times = torch.tensor([[height, width, 0, 0, height, width]] * len(texts), dtype=text.dtype, device=self.device)
        return text, {"text_embeds": torch.cat([pair[1] for pair in pairs if pair[1] is not None]), "time_ids": times}

    def _encode_uncached(self, text: str, negative: bool) -> tuple[Tensor, Tensor | None]:
        """One text at a time, so that its embedding does not depend on its neighbours."""
        result = self._pipeline.encode_prompt(
            prompt=text, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        hidden, pooled = result[0], result[2] if len(result) == 4 else None
        check_finite(hidden, "the text encoder", self.settings)
        zero = negative and not text and getattr(self._pipeline.config, "force_zeros_for_empty_prompt", False)
        if zero and pooled is not None:
            return torch.zeros_like(hidden), torch.zeros_like(pooled)
        return hidden, pooled

    def _scheduler(self) -> Any:
        """A fresh scheduler: multistep solvers remember earlier steps."""
        import diffusers

        own = self._pipeline.scheduler
        kind = getattr(diffusers, SOLVERS[self.settings.solver]) if self.settings.solver in SOLVERS else type(own)
        scheduler = kind.from_config(own.config)
        scheduler.set_timesteps(self.settings.steps, device=self.device)
        return scheduler

    @staticmethod
    def _step_options(scheduler: Any, random: list[torch.Generator]) -> dict[str, Any]:
        """As diffusers' pipelines call `step`: noise from the samples' own generators, and no noise by eta."""
        taken = inspect.signature(scheduler.step).parameters
        options: dict[str, Any] = {"generator": random} if "generator" in taken else {}
        return options | ({"eta": 0.0} if "eta" in taken else {})


def _parted(batch: Tensor, size: int) -> list[Tensor]:
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def _be_deterministic(device: str, tf32: bool) -> None:
    if device.startswith("cuda"):
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        torch.use_deterministic_algorithms(True, warn_only=True)
