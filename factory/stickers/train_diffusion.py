"""Training task of the embedded text-to-image model: latent diffusion on captioned rendered scenes."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from factory.config.vocabulary import caption, coco
from factory.errors import UserError
from factory.files.digest import folder_digest
from factory.stickers.sampling import Sampling, sample
from factory.stickers.text_to_image import (
    LATENT_FACTOR,
    NOISE,
    TextToImage,
    as_pipeline,
    load_weights,
    new_text_to_image,
    open_autoencoder,
    save_pipeline,
)
from factory.stickers.tokens import MAX_TOKENS, train_tokenizer
from factory.stickers.training_scenes import all_captions, scene_classes, scene_latents
from factory.training.precision import autocast
from factory.training.sheet import tile

_EMPTY_SHARE = 0.1
_OBJECT_WEIGHT = 1.0
"""Additional weight of the error on the latents of objects."""
_MAX_SNR = 1.0
_SNR_POWER = 0.6
"""Maximum and exponent of the SNR in the loss weight of the clean latents, min(SNR, 1) ** 0.6.

This is min-SNR weighting (Hang et al., ICCV 2023) with more weight on high noise levels, which determine shapes. With
the usual maximum of 5 and exponent 1, 40 % of the loss came from noise levels at which only the finest details are
missing.
"""
_MIN_SNR = 0.02
"""Minimum of the SNR in the loss weight: at the highest noise levels, only colours and layout remain to be learned, and
they would hardly count without it."""
_TIMESTEP_POWER = 1.1
_TEST_TIMESTEPS = (224, 353, 494, 608, 800)
_TEST_SCENES = 96


class DiffusionTask:
    """v-prediction with min-SNR weights on cached latents of scenes with one or two objects."""

    name = "diffusion"

    @property
    def depends_on(self) -> Mapping[str, str]:
        """The autoencoder, in whose latents the model draws."""
        return {"autoencoder": self._autoencoder_digest}

    def __init__(self, autoencoder: Path, cache: Path, device: str, report: Callable[[str], None]) -> None:
        self.device = device
        self._autoencoder_digest = folder_digest(autoencoder)
        self.autoencoder = open_autoencoder(autoencoder, device)
        self.tokenizer = train_tokenizer(all_captions())
        self.model: nn.Module = new_text_to_image(self.tokenizer, device)
        self.noise = DDPMScheduler(**NOISE, prediction_type="v_prediction")
        _check_factor(self.autoencoder, autoencoder)
        self.latents, self.weights = scene_latents(self.autoencoder, autoencoder, cache, device, report)
        self.token_ids = self._tokens([caption(scene_classes(k)) for k in range(len(self.latents))])
        self.empty = self._tokens([""])[0]
        self.training_scenes = len(self.latents) - _TEST_SCENES

    def _tokens(self, texts: list[str]) -> Tensor:
        encoded = self.tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True)
        return torch.tensor(encoded.input_ids)

    def loss(self, step: int, batch: int, seed: int) -> Tensor:
        """The loss of a batch of cached scenes."""
        rng = np.random.default_rng((seed, 2, step))
        indices = rng.integers(0, self.training_scenes, batch)
        latents = self.latents[indices].float()
        token_ids = self.token_ids[indices]
        token_ids[torch.from_numpy(rng.random(batch) < _EMPTY_SHARE)] = self.empty
        # Stratified timesteps, one from each of `batch` equal ranges: the same distribution with less variance.
        strata = ((np.arange(batch) + rng.random(batch)) / batch) ** _TIMESTEP_POWER * 1000
        timesteps = torch.from_numpy(rng.permutation(strata).astype(np.int64))
        noise = torch.randn(latents.shape)
        noisy = self.noise.add_noise(latents, noise, timesteps)
        target = self.noise.get_velocity(latents, noise, timesteps)
        alpha = self.noise.alphas_cumprod[timesteps]
        snr = alpha / (1 - alpha)
        weight = (snr.clamp(_MIN_SNR, _MAX_SNR) ** _SNR_POWER / (snr + 1))[:, None, None, None]
        weight = weight * (1 + _OBJECT_WEIGHT * self.weights[indices].float()[:, None])
        with autocast(self.device):
            predicted = self.model(
                noisy.to(self.device, memory_format=torch.channels_last),
                timesteps.to(self.device),
                token_ids.to(self.device),
            ).float()
        return (weight.to(self.device) * (predicted - target.to(self.device)) ** 2).mean()

    def pipeline(self, model: nn.Module) -> StableDiffusionPipeline:
        """The model as a standard pipeline."""
        assert isinstance(model, TextToImage)
        return as_pipeline(model, self.tokenizer, self.autoencoder)

    @property
    def sampling(self) -> Sampling:
        """The sampling options for the sample sheets."""
        return Sampling()

    def sample_sheet(self, model: nn.Module) -> Image.Image:
        """One image of every class, then images of pairs."""
        pipeline = self.pipeline(model)
        pipeline.set_progress_bar_config(disable=True)
        names = coco().names
        pairs = [caption((names[k], names[(k * 7 + 31) % len(names)])) for k in range(0, len(names), 4)]
        prompts = [caption((name,)) for name in names] + pairs
        pictures = sample(pipeline, prompts, range(len(prompts)), sampling=self.sampling)
        return tile([pictures[row : row + 20] for row in range(0, len(pictures), 20)])

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """The unweighted error of v on held-out scenes, at some timesteps."""
        latents, token_ids = self.latents[self.training_scenes :].float(), self.token_ids[self.training_scenes :]
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
        errors = {}
        for timestep in _TEST_TIMESTEPS:
            timesteps = torch.full((len(latents),), timestep)
            noisy = self.noise.add_noise(latents, noise, timesteps)
            target = self.noise.get_velocity(latents, noise, timesteps)
            with autocast(self.device):
                predicted = model(noisy.to(self.device), timesteps.to(self.device), token_ids.to(self.device))
            errors[f"error_{timestep}"] = (predicted.float().cpu() - target).square().mean().item()
        return errors

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a diffusers folder in half precision."""
        save_pipeline(self.pipeline(model), folder)

    def load(self, folder: Path) -> None:
        """Load the U-Net and the text encoder of a saved pipeline."""
        assert isinstance(self.model, TextToImage)
        load_weights(self.model, folder)


def _check_factor(autoencoder: AutoencoderTiny, folder: Path) -> None:
    factor = 2 ** (len(autoencoder.config["encoder_block_out_channels"]) - 1)
    if factor != LATENT_FACTOR:
        raise UserError(
            f"the autoencoder {folder} downsamples images {factor} times, but the text-to-image model requires "
            f"{LATENT_FACTOR} times; train one with `factory stickers train autoencoder` and the same --out."
        )
