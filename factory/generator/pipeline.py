"""A generator that runs a diffusers pipeline of Stable Diffusion 1, 2 or XL."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

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

Key = TypeVar("Key")
Value = TypeVar("Value")

_CAPTURE_SEED = 0

_DECODED_TOGETHER = 2**21
"""Pixels that the autoencoder processes at a time, to limit memory: 8 images of 512 x 512, or 2 of 1024 x 1024."""

_UNTILED = 1024
"""Images with a longer side are decoded and encoded in overlapping tiles."""

_MAX_CACHED = 4096
"""Text embeddings that are kept, and class embeddings besides."""


@dataclass(frozen=True)
class _Step:
    """The conditional half (B, C, h, w) of a U-Net call's input, and its timestep."""

    latents: Tensor
    time: int


class PipelineGenerator:
    """Samples in micro-batches, with one noise generator per image, batched guidance and cached text embeddings.

    `needs` names what to capture (see `factory.generator.interface`); capturing does not change the images. Raises
    UserError if HALVES are to be captured while sampling without guidance.
    """

    def __init__(self, recipe: Recipe, device: str = "cpu", needs: frozenset[str] = frozenset()) -> None:
        self.recipe, self.settings, self.device, self.needs = recipe, recipe.generator, device, needs
        if HALVES in needs and recipe.masks.capture == "sampling" and self.settings.guidance <= 1:
            raise UserError(
                f"this grounder reads both halves of classifier-free guidance, but a guidance of "
                f"{self.settings.guidance:g} has only one; give a guidance above 1."
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
        # Plain dictionaries: a cache around a bound method refers back to the generator, and such a cycle keeps the
        # U-Net in memory until the garbage collector happens to run.
        self._encoded: dict[tuple[str, bool], tuple[Tensor, Tensor | None]] = {}
        self._class_embedding_of: dict[str, Tensor] = {}
        factor = int(self._pipeline.vae_scale_factor)
        size = self._unet.config.sample_size
        native = (size, size) if isinstance(size, int) else tuple(size)
        self._latent_shape = (
            int(self._unet.config.in_channels),
            self.settings.height // factor if self.settings.height else native[0],
            self.settings.width // factor if self.settings.width else native[1],
        )
        self._pixels = (self._latent_shape[1] * factor, self._latent_shape[2] * factor)
        self._decode_batch = max(1, _DECODED_TOGETHER // (self._pixels[0] * self._pixels[1]))
        # AutoencoderTiny needs little memory, and its tiling is correct only for 8 pixels per latent.
        if max(self._pixels) > _UNTILED and type(self._vae).__name__ == "AutoencoderKL":
            self._vae.enable_tiling()
        self._guidance_embedding = self._embed_guidance()

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """Generate one micro-batch. On a CPU the recipe's number of threads is used, whatever the process has set."""
        torch.set_num_threads(self.settings.threads)
        capture = Capture(self._unet, self.needs)
        random = [torch.Generator().manual_seed(request.seed) for request in requests]
        prompts = [request.prompt for request in requests]
        while_sampling = self.recipe.masks.capture == "sampling"
        groups = self._groups(prompts)
        latents, step = self._denoise(prompts, random, capture if while_sampling else None, groups)
        if self.needs & {ATTENTION, CROSS_ATTENTION, FEATURES, LATENT} and not while_sampling:
            step = self._capture_finished(latents, prompts, capture, groups)
        images = self._decode(latents)
        return [self._result(capture, k, prompt, images[k], step) for k, prompt in enumerate(prompts)]

    @torch.no_grad()
    def read(self, latents: Tensor, timesteps: int | Sequence[int], prompts: Sequence[Prompt]) -> Captured:
        """Reproduce with one U-Net call what `generate` captured for images, from their `latent` and `timestep`.

        `latents` are (B, C, h, w); `timesteps` is one for all images or one for each. Autocast applies to the call.
        """
        capture, groups = Capture(self._unet, self.needs), self._groups(prompts)
        with capture.watching(len(prompts), groups):
            self._call_unet(latents.to(self.device), torch.tensor(timesteps, device=self.device), prompts)
        maps = {name: self._shaped(flat) for name, flat in capture.cross_attention.items()}
        return Captured(capture.blocks, maps, self._class_embeddings(prompts))

    @property
    def pixels(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return self._pixels

    @property
    def alphas(self) -> Tensor:
        """The scheduler's cumulative product of alphas at each timestep, float32, on the device."""
        levels: Tensor = self._pipeline.scheduler.alphas_cumprod
        return levels.to(self.device)

    def encode_images(self, images: NDArray[np.uint8]) -> Tensor:
        """Scaled latents, float32 (B, C, h, w), of uint8 images (B, height, width, 3): the mean of the autoencoder's
        distribution."""
        pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        encoded = [self._vae.encode(part.to(self._vae.dtype)) for part in _split(pixels, self._decode_batch)]
        means = [part.latents if hasattr(part, "latents") else part.latent_dist.mode() for part in encoded]
        mean = torch.cat(means).float()
        check_finite(mean, "the autoencoder's encoder", self.settings)
        shift, scale = self._latent_statistics()
        latents: Tensor = (mean - shift) * scale
        return latents

    def decode_latents(self, latents: Tensor) -> list[Image]:
        """uint8 RGB (height, width, 3) each."""
        return self._decode(latents)

    def denoise(self, latents: Tensor, timestep: int, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """(clean latents, noise) that the model predicts from noisy latents (B, C, h, w), without guidance."""
        text, extra = self._conditions([prompt.text for prompt in prompts], False)
        predicted = self._predict(self._unet, latents, torch.tensor(timestep, device=self.device), text, extra)
        alpha = self.alphas[timestep]
        signal, sigma = alpha**0.5, (1 - alpha) ** 0.5
        kind = self._pipeline.scheduler.config.prediction_type
        if kind == "v_prediction":
            return signal * latents - sigma * predicted, signal * predicted + sigma * latents
        if kind == "sample":
            return predicted, (latents - signal * predicted) / sigma
        return (latents - sigma * predicted) / signal, predicted

    def _result(self, capture: Capture, index: int, prompt: Prompt, image: Any, step: _Step) -> Generated:
        """One image of the micro-batch with its share of what was captured."""
        attention = self._attention(capture, index, prompt) if ATTENTION in self.needs else None
        features = {name: block[index] for name, block in capture.blocks.items()}
        maps = {
            name: self._shaped(flat[index])[:, : len(prompt.classes)] for name, flat in capture.cross_attention.items()
        }
        embeddings = self._class_embeddings([prompt])
        latent = step.latents[index].cpu().numpy().astype(np.float16) if LATENT in self.needs else None
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
    ) -> tuple[Tensor, _Step]:
        """Finished latents, float32 (B, C, h, w), and the last step that was captured.

        The noise is drawn on the CPU, so that it is the same on every device.
        """
        scheduler = self._scheduler()
        noise = torch.cat([torch.randn((1, *self._latent_shape), generator=generator) for generator in random])
        guided = self.settings.guidance > 1 and self._guidance_embedding is None
        texts = [prompt.text for prompt in prompts]
        text, extra = self._conditions([self.settings.negative] * len(texts) + texts if guided else texts, guided)
        latents = noise.to(self.device) * scheduler.init_noise_sigma
        options = self._step_options(scheduler, random)
        captured_steps, last = self._captured_steps(scheduler.timesteps), _Step(latents, 0)
        for step, time in enumerate(scheduler.timesteps):
            batch = torch.cat([latents, latents]) if guided else latents
            given = scheduler.scale_model_input(batch, time)
            if capture is not None and step in captured_steps:
                last = _Step(given[-len(prompts) :], int(time))
                with capture.watching(len(prompts), groups):
                    predicted = self._predict(self._unet, given, time, text, extra)
            else:
                predicted = self._predict(self._step_unet, given, time, text, extra)
            if guided:
                uncond, cond = predicted.chunk(2)
                predicted = uncond + self.settings.guidance * (cond - uncond)
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

    def _capture_finished(
        self, latents: Tensor, prompts: list[Prompt], capture: Capture, groups: Tensor | None
    ) -> _Step:
        """Noise the finished latents to each chosen timestep and capture a conditional call; all images get the same
        noise."""
        alphas = self._pipeline.scheduler.alphas_cumprod
        random = torch.Generator().manual_seed(_CAPTURE_SEED)
        last = _Step(latents, 0)
        for time in sorted(self.recipe.masks.timesteps):
            noise = torch.randn((1, *self._latent_shape), generator=random).to(self.device)
            alpha = float(alphas[time])
            last = _Step(alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise, time)
            with capture.watching(len(prompts), groups):
                self._call_unet(last.latents, torch.tensor(time, device=self.device), prompts)
        return last

    def _call_unet(self, latents: Tensor, times: Tensor, prompts: Sequence[Prompt]) -> None:
        """One U-Net call to capture: the conditional half, preceded by the unconditional one if HALVES are needed."""
        texts, both = [prompt.text for prompt in prompts], HALVES in self.needs
        text, extra = self._conditions([self.settings.negative] * len(texts) + texts if both else texts, both)
        if both:
            latents, times = torch.cat([latents, latents]), torch.cat([times, times]) if times.ndim else times
        self._predict(self._unet, latents, times, text, extra)

    def _captured_steps(self, times: Tensor) -> set[int]:
        """The solver's steps nearest to the chosen timesteps."""
        distances = [(times.float().cpu() - chosen).abs() for chosen in self.recipe.masks.timesteps]
        return {int(distance.argmin()) for distance in distances}

    def _decode(self, latents: Tensor) -> list[Any]:
        """uint8 RGB (height, width, 3) each."""
        shift, scale = self._latent_statistics()
        scaled = (latents / scale + shift).to(self._vae.dtype)
        pixels = torch.cat([self._vae.decode(part).sample.float() for part in _split(scaled, self._decode_batch)])
        check_finite(pixels, "the autoencoder's decoder", self.settings)
        pixels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return list(pixels.permute(0, 2, 3, 1).cpu().numpy())

    def _latent_statistics(self) -> tuple[Any, Any]:
        """(shift, scale) from the autoencoder's latents to the U-Net's: (latents - shift) * scale."""
        config = self._vae.config
        scale, shift = float(config.scaling_factor), float(getattr(config, "shift_factor", None) or 0)
        mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or deviation is None:
            return shift, scale
        means, deviations = (torch.tensor(v, device=self.device).view(1, -1, 1, 1) for v in (mean, deviation))
        return means, scale / deviations

    def _embed_guidance(self) -> Tensor | None:
        """The guidance's embedding (1, channels) for a U-Net distilled to take it as an input; None for others."""
        channels = getattr(self._unet.config, "time_cond_proj_dim", None)
        if channels is None:
            return None
        scale = torch.tensor([self.settings.guidance - 1])
        embedded: Tensor = self._pipeline.get_guidance_scale_embedding(scale, embedding_dim=channels)
        return embedded.to(self.device, self._unet.dtype)

    def _groups(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """Token groups (B, tokens, K + 3) of 0 and 1: each class, the start token, other words, end and padding.

        K is the largest number of classes of a prompt; the groups that a prompt with fewer does not use are empty.
        """
        if not self.needs & {ATTENTION, CROSS_ATTENTION}:
            return None
        tokenizer = self._pipeline.tokenizer
        start, other, padding = (max(len(prompt.classes) for prompt in prompts) + k for k in range(3))
        groups = torch.zeros(len(prompts), tokenizer.model_max_length, padding + 1)
        for tokens, prompt in zip(groups, prompts, strict=True):
            own, end = class_tokens(tokenizer, prompt)
            tokens[0, start], tokens[1:end, other], tokens[end:, padding] = 1, 1, 1
            for group, positions in enumerate(own):
                tokens[positions, group], tokens[positions, other] = 1, 0
        return groups.to(self.device)

    def _attention(self, capture: Capture, index: int, prompt: Prompt) -> Attention:
        count = len(prompt.classes)
        cross, layers = {}, {}
        for positions, total in capture.cross.items():
            maps = self._shaped(total[index]) / capture.layers[positions]
            cross[maps.shape[1], maps.shape[2]] = torch.cat([maps[:count], maps[-3:]]).cpu().numpy()
            layers[maps.shape[1], maps.shape[2]] = capture.layers[positions]
        if not capture.self_attention:
            return Attention(cross, layers)
        finest = max(capture.self_attention)
        self_attention = functional.normalize(capture.self_attention[finest][index], p=1, dim=1)
        return Attention(cross, layers, self_attention.cpu().numpy(), level_shape(finest, self._latent_shape[1:]))

    def _shaped(self, maps: Tensor) -> Tensor:
        """(..., positions) to (..., h, w)."""
        return maps.reshape(*maps.shape[:-1], *level_shape(maps.shape[-1], self._latent_shape[1:]))

    def _class_embeddings(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """The embeddings of each prompt's classes, float32 (B, K, channels); 0 where a prompt has fewer than K."""
        if CLASS_EMBEDDINGS not in self.needs:
            return None
        max_classes = max(len(prompt.classes) for prompt in prompts)
        embeddings = [[self._class_embedding(phrase) for phrase in prompt.phrases] for prompt in prompts]
        padding = torch.zeros_like(embeddings[0][0])
        return torch.stack([torch.stack(own + [padding] * (max_classes - len(own))) for own in embeddings])

    def _class_embedding(self, phrase: str) -> Tensor:
        return _cached(self._class_embedding_of, phrase, lambda: self._class_embedding_uncached(phrase))

    def _class_embedding_uncached(self, phrase: str) -> Tensor:
        prompt = Prompt(caption([phrase]), (phrase,), (phrase,))
        (own,), _ = class_tokens(self._pipeline.tokenizer, prompt)
        return self._encode(prompt.text, False)[0][0, own].float().mean(0)

    def _conditions(self, texts: list[str], guided: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Text embeddings (len(texts), tokens, channels), and the additional conditions of an XL U-Net."""
        pairs = [self._encode(text, guided and k < len(texts) // 2) for k, text in enumerate(texts)]
        text = torch.cat([pair[0] for pair in pairs])
        if pairs[0][1] is None:
            return text, {}
        height, width = self._pixels
        times = torch.tensor([[height, width, 0, 0, height, width]] * len(texts), dtype=text.dtype, device=self.device)
        return text, {"text_embeds": torch.cat([pair[1] for pair in pairs if pair[1] is not None]), "time_ids": times}

    def _encode(self, text: str, negative: bool) -> tuple[Tensor, Tensor | None]:
        """(embedding, pooled embedding of an XL model) of a text."""
        return _cached(self._encoded, (text, negative), lambda: self._encode_uncached(text, negative))

    def _encode_uncached(self, text: str, negative: bool) -> tuple[Tensor, Tensor | None]:
        # One text at a time, so that its embedding does not depend on the rest of the batch.
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
        """Options for `step` as diffusers' pipelines give them: each sample's own noise generator, and eta 0."""
        accepted = inspect.signature(scheduler.step).parameters
        options: dict[str, Any] = {"generator": random} if "generator" in accepted else {}
        return options | ({"eta": 0.0} if "eta" in accepted else {})


def _cached(cache: dict[Key, Value], key: Key, make: Callable[[], Value]) -> Value:
    """The value of `key`, made if it is missing; the oldest of _MAX_CACHED values is dropped for it."""
    if key not in cache:
        if len(cache) >= _MAX_CACHED:
            del cache[next(iter(cache))]
        cache[key] = make()
    return cache[key]


def _split(batch: Tensor, size: int) -> list[Tensor]:
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def _be_deterministic(device: str, tf32: bool) -> None:
    if device.startswith("cuda"):
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        torch.use_deterministic_algorithms(True, warn_only=True)
