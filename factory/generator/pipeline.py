"""The generator on a diffusers pipeline of the Stable Diffusion 1, 2 or XL kind."""

import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from factory.generator.capture import Capture, level_shape
from factory.generator.interface import ATTENTION, FEATURES, Attention, Generated, Request
from factory.generator.load import load_pipeline
from factory.generator.tokens import class_tokens
from factory.prompts import Prompt
from factory.recipe import Recipe

_CAPTURE_SEED = 0


class PipelineGenerator:
    """Samples in micro-batches: one noise generator per image, guidance batched, embeddings made once.

    `needs` says what to capture, of ATTENTION and FEATURES; capturing does not change the images.
    """

    def __init__(self, recipe: Recipe, device: str = "cpu", needs: frozenset[str] = frozenset()) -> None:
        self.recipe, self.settings, self.device, self.needs = recipe, recipe.generator, device, needs
        _be_deterministic(device)
        self._pipeline = load_pipeline(self.settings, device)
        self._unet, self._vae = self._pipeline.unet.eval(), self._pipeline.vae.eval()
        if self.settings.channels_last:
            self._unet.to(memory_format=torch.channels_last)
            self._vae.to(memory_format=torch.channels_last)
        self._step_unet = torch.compile(self._unet) if self.settings.compile else self._unet
        if self._vae.dtype == torch.float16 and getattr(self._vae.config, "force_upcast", False):
            self._vae.to(torch.float32)
        self._encode = lru_cache(maxsize=4096)(self._encode_uncached)
        factor = int(self._pipeline.vae_scale_factor)
        size = self._unet.config.sample_size
        native = (size, size) if isinstance(size, int) else tuple(size)
        self._latent_shape = (
            int(self._unet.config.in_channels),
            self.settings.height // factor if self.settings.height else native[0],
            self.settings.width // factor if self.settings.width else native[1],
        )
        self._pixels = (self._latent_shape[1] * factor, self._latent_shape[2] * factor)

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """One micro-batch. On a CPU it runs on the recipe's number of threads, whatever the process was given."""
        torch.set_num_threads(self.settings.threads)
        capture = Capture(self._unet, ATTENTION in self.needs, FEATURES in self.needs) if self.needs else None
        random = [torch.Generator().manual_seed(request.seed) for request in requests]
        prompts = [request.prompt for request in requests]
        in_sampling = capture if self.recipe.masks.capture == "sampling" else None
        latents = self._denoise(prompts, random, in_sampling)
        if capture is not None and in_sampling is None:
            self._look_again(latents, prompts, capture)
        images = self._decode(latents)
        results = []
        for place, prompt in enumerate(prompts):
            attention = self._attention(capture, place, prompt) if capture and ATTENTION in self.needs else None
            features = {name: block[place] for name, block in capture.blocks.items()} if capture else {}
            results.append(Generated(images[place], attention, features))
        return results

    def _denoise(self, prompts: list[Prompt], random: list[torch.Generator], capture: Capture | None) -> Tensor:
        """Finished latents, float32 (B, C, h, w). The noise is drawn on the CPU, so no device changes it."""
        scheduler = self._scheduler()
        noise = torch.cat([torch.randn((1, *self._latent_shape), generator=generator) for generator in random])
        guided = self.settings.guidance > 1
        texts = [prompt.text for prompt in prompts]
        words, more = self._conditions([self.settings.negative] * len(texts) + texts if guided else texts, guided)
        latents = noise.to(self.device) * scheduler.init_noise_sigma
        options = self._step_options(scheduler, random)
        watched = self._watched_steps(scheduler.timesteps)
        for step, time in enumerate(scheduler.timesteps):
            both = torch.cat([latents, latents]) if guided else latents
            given = scheduler.scale_model_input(both, time)
            if capture is not None and step in watched:
                with capture.watching(len(prompts)):
                    predicted = self._predict(self._unet, given, time, words, more)
            else:
                predicted = self._predict(self._step_unet, given, time, words, more)
            if guided:
                free, held = predicted.chunk(2)
                predicted = free + self.settings.guidance * (held - free)
            latents = scheduler.step(predicted, time, latents, **options).prev_sample
        return latents

    def _predict(self, unet: Any, latents: Tensor, time: Any, words: Tensor, more: dict[str, Tensor]) -> Tensor:
        given = latents.to(self._unet.dtype)
        if self.settings.channels_last:
            given = given.contiguous(memory_format=torch.channels_last)
        out: Tensor = unet(given, time, encoder_hidden_states=words, added_cond_kwargs=more or None).sample
        return out.float()

    def _look_again(self, latents: Tensor, prompts: list[Prompt], capture: Capture) -> None:
        """One conditional call on the finished latents for each chosen noise level, with the same noise for all."""
        words, more = self._conditions([prompt.text for prompt in prompts], False)
        levels = self._pipeline.scheduler.alphas_cumprod
        random = torch.Generator().manual_seed(_CAPTURE_SEED)
        for time in sorted(self.recipe.masks.timesteps):
            noise = torch.randn((1, *self._latent_shape), generator=random).to(self.device)
            kept = float(levels[time])
            noisy = kept**0.5 * latents + (1 - kept) ** 0.5 * noise
            with capture.watching(len(prompts)):
                self._predict(self._unet, noisy, torch.tensor(time, device=self.device), words, more)

    def _watched_steps(self, times: Tensor) -> set[int]:
        """The solver's steps nearest to the chosen noise levels."""
        distance = [(times.float().cpu() - level).abs() for level in self.recipe.masks.timesteps]
        return {int(row.argmin()) for row in distance}

    def _decode(self, latents: Tensor) -> list[Any]:
        """uint8 RGB (height, width, 3) each."""
        config = self._vae.config
        scaled = latents / float(config.scaling_factor) + float(getattr(config, "shift_factor", None) or 0)
        pixels = self._vae.decode(scaled.to(self._vae.dtype)).sample.float()
        pixels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return list(pixels.permute(0, 2, 3, 1).cpu().numpy())

    def _attention(self, capture: Capture, place: int, prompt: Prompt) -> Attention:
        groups, end = class_tokens(self._pipeline.tokenizer, prompt)
        own = {position for group in groups for position in group}
        cross = {}
        for places, total in capture.cross.items():
            shape = level_shape(places, self._latent_shape[1:])
            maps = total[place].T / capture.layers[places]
            others = [k for k in range(1, end) if k not in own]
            parts = [maps[group].sum(0) for group in groups] + [maps[0], maps[others].sum(0), maps[end:].sum(0)]
            cross[shape] = torch.stack(parts).reshape(len(parts), *shape).cpu().numpy()
        layers = {level_shape(places, self._latent_shape[1:]): count for places, count in capture.layers.items()}
        if not capture.within:
            return Attention(cross, layers)
        finest = max(capture.within)
        within = functional.normalize(capture.within[finest][place], p=1, dim=1)
        return Attention(cross, layers, within.cpu().numpy(), level_shape(finest, self._latent_shape[1:]))

    def _conditions(self, texts: list[str], guided: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Embeddings (len(texts), tokens, channels) and what an XL U-Net wants besides."""
        pairs = [self._encode(text, guided and k < len(texts) // 2) for k, text in enumerate(texts)]
        words = torch.cat([pair[0] for pair in pairs])
        if pairs[0][1] is None:
            return words, {}
        height, width = self._pixels
        times = torch.tensor([[height, width, 0, 0, height, width]] * len(texts), dtype=words.dtype, device=self.device)
        return words, {"text_embeds": torch.cat([pair[1] for pair in pairs if pair[1] is not None]), "time_ids": times}

    def _encode_uncached(self, text: str, negative: bool) -> tuple[Tensor, Tensor | None]:
        """One text at a time, so that its embedding does not depend on its neighbours."""
        result = self._pipeline.encode_prompt(
            prompt=text, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        words, pooled = result[0], result[2] if len(result) == 4 else None
        zero = negative and not text and getattr(self._pipeline.config, "force_zeros_for_empty_prompt", False)
        if zero and pooled is not None:
            return torch.zeros_like(words), torch.zeros_like(pooled)
        return words, pooled

    def _scheduler(self) -> Any:
        """A fresh scheduler: multistep solvers remember earlier steps."""
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

        chosen = {"dpm++": DPMSolverMultistepScheduler, "ddim": DDIMScheduler, "euler": EulerDiscreteScheduler}
        kind = chosen.get(self.settings.solver, type(self._pipeline.scheduler))
        scheduler = kind.from_config(self._pipeline.scheduler.config)
        scheduler.set_timesteps(self.settings.steps, device=self.device)
        return scheduler

    @staticmethod
    def _step_options(scheduler: Any, random: list[torch.Generator]) -> dict[str, Any]:
        return {"generator": random} if "generator" in inspect.signature(scheduler.step).parameters else {}


def _be_deterministic(device: str) -> None:
    if device.startswith("cuda"):
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.use_deterministic_algorithms(True, warn_only=True)
