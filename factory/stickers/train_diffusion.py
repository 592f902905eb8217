"""Training recipe of the embedded text-to-image model: latent diffusion on the captions of rendered scenes."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import (
    AutoencoderTiny,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from factory.errors import UserError
from factory.stickers.atlas import DRAWN_STYLES
from factory.stickers.scenes import Scene, render_scene
from factory.stickers.tokens import MAX_TOKENS, train_tokenizer
from factory.stickers.train_autoencoder import to_tensor
from factory.training.loop import tile
from factory.vocabulary import caption, coco

SCENE_KIND_SHARES = (0.8, 0.1, 0.05, 0.05)
"""The model learns one of the training styles, mostly on gradients: with two styles on all backgrounds alike, the
shapes were still coarse after 230,000 samples."""
_SCENES = 16_000
_PAIR_SHARE = 0.5
_EMPTY_SHARE = 0.1
_OBJECT_WEIGHT = 1.0
"""How much more the error on an object's latents counts than the background's."""
_MAX_SNR = 1.0
_SNR_POWER = 0.75
"""The error of the clean latents counts as min(SNR, 1) ** 0.75. That is min-SNR weighting (Hang et al., ICCV 2023)
turned towards the noisier half, where shapes are decided: with its usual 5 and power 1 four tenths of the loss came
from noise levels at which only the autoencoder's finest detail is missing."""
_NOISE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


class TextToImage(nn.Module):
    """The two parts that are trained together."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(64, 128, 192),
            layers_per_block=1,
            cross_attention_dim=192,
            down_block_types=("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3,
            attention_head_dim=(2, 4, 6),
            norm_num_groups=16,
        )
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=192,
                intermediate_size=768,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=MAX_TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )

    def forward(self, noisy: Tensor, timesteps: Tensor, token_ids: Tensor) -> Tensor:
        """Predicted v (B, 4, 16, 16) of noisy latents, for token ids (B, MAX_TOKENS)."""
        states = self.text_encoder(token_ids)[0]
        prediction: Tensor = self.unet(noisy, timesteps, states).sample
        return prediction


class DiffusionTask:
    """v-prediction with min-SNR weights on cached latents of scenes with one object or two."""

    name = "diffusion"
    made_of: ClassVar[Mapping[str, str]] = {}

    def __init__(self, autoencoder: Path, cache: Path, device: str, report: Callable[[str], None] = print) -> None:
        if not (autoencoder / "config.json").exists():
            raise UserError(
                f"{autoencoder} holds no trained autoencoder; run `factory stickers train autoencoder` first."
            )
        self.device = device
        self.autoencoder = (
            AutoencoderTiny.from_pretrained(autoencoder)
            .to(device, torch.float32, memory_format=torch.channels_last)
            .eval()
        )
        self.autoencoder.register_to_config(_name_or_path="")  # else the saved folder names this machine's
        self.captions = all_captions()
        self.tokenizer = train_tokenizer(self.captions)
        self.model: nn.Module = self._new_model()
        self.noise = DDPMScheduler(**_NOISE, prediction_type="v_prediction")
        self.latents, self.weights = scene_latents(self.autoencoder, autoencoder, cache, device, report)
        self._read_captions()

    def _new_model(self) -> TextToImage:
        torch.manual_seed(0)
        model = TextToImage(self.tokenizer).to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert isinstance(model, TextToImage)
        if self.device == "cpu":  # the fused attention's backward pass takes a third of a step there
            model.unet.set_attn_processor(AttnProcessor())
        return model

    def _read_captions(self) -> None:
        self.token_ids = self._tokens([caption(scene_classes(k)) for k in range(len(self.latents))])
        self.empty = self._tokens([""])[0]

    def _tokens(self, texts: list[str]) -> Tensor:
        encoded = self.tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True)
        return torch.tensor(encoded.input_ids)

    def loss(self, step: int, batch: int, seed: int) -> Tensor:
        """The loss of one step's batch of cached scenes."""
        rng = np.random.default_rng((seed, 2, step))
        chosen = rng.integers(0, len(self.latents), batch)
        latents = self.latents[chosen].float()
        token_ids = self.token_ids[chosen]
        token_ids[torch.from_numpy(rng.random(batch) < _EMPTY_SHARE)] = self.empty
        # One timestep from each of `batch` equal ranges: the same distribution with less variance.
        # The exponent favours the noisier steps, in which the object takes shape.
        strata = ((np.arange(batch) + rng.random(batch)) / batch) ** 0.8 * 1000
        timesteps = torch.from_numpy(rng.permutation(strata).astype(np.int64))
        noise = torch.randn(latents.shape)
        noisy = self.noise.add_noise(latents, noise, timesteps)
        target = self.noise.get_velocity(latents, noise, timesteps)
        alpha = self.noise.alphas_cumprod[timesteps]
        snr = alpha / (1 - alpha)
        weight = (snr.clamp(max=_MAX_SNR) ** _SNR_POWER / (snr + 1))[:, None, None, None]
        weight = weight * (1 + _OBJECT_WEIGHT * self.weights[chosen].float()[:, None])
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            predicted = self.model(
                noisy.to(self.device, memory_format=torch.channels_last),
                timesteps.to(self.device),
                token_ids.to(self.device),
            ).float()
        return (weight.to(self.device) * (predicted - target.to(self.device)) ** 2).mean()

    def pipeline(self, model: nn.Module) -> StableDiffusionPipeline:
        """The parts as a stock pipeline."""
        assert isinstance(model, TextToImage)
        scheduler = DPMSolverMultistepScheduler(
            **_NOISE, prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=1
        )
        return StableDiffusionPipeline(
            vae=self.autoencoder,
            text_encoder=model.text_encoder,
            tokenizer=self.tokenizer,
            unet=model.unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def sample_sheet(self, model: nn.Module) -> Image.Image:
        """One image of every class, then of pairs."""
        pipeline = self.pipeline(model)
        pipeline.set_progress_bar_config(disable=True)
        names = coco().names
        pairs = [caption((names[k], names[(k * 7 + 31) % len(names)])) for k in range(0, len(names), 4)]
        prompts = [caption((name,)) for name in names] + pairs
        pictures: list[Image.Image] = []
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            for first in range(0, len(prompts), 25):
                noise = torch.Generator().manual_seed(first)
                batch = prompts[first : first + 25]
                pictures += pipeline(batch, num_inference_steps=15, guidance_scale=3.0, generator=noise).images
        return tile([pictures[row : row + 20] for row in range(0, len(pictures), 20)])

    def figures(self, model: nn.Module) -> dict[str, float]:
        """None; `factory stickers evaluate` measures."""
        return {}

    def save(self, model: nn.Module, folder: Path) -> None:
        """A diffusers folder in half precision."""
        self.pipeline(model).to(torch.float16).save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Begin with the U-Net, the text encoder and the tokenizer of a saved pipeline."""
        parts = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)
        self.tokenizer = parts.tokenizer
        self._read_captions()
        self.model = self._new_model()
        assert isinstance(self.model, TextToImage)
        self.model.unet.load_state_dict(parts.unet.state_dict())
        self.model.text_encoder.load_state_dict(parts.text_encoder.state_dict())


def all_captions() -> list[str]:
    """The captions of every class and of every ordered pair: what the tokenizer is learnt from."""
    names = coco().names
    return [caption((a,)) for a in names] + [caption((a, b)) for a in names for b in names if a != b]


def scene_classes(index: int) -> tuple[str, ...]:
    """The classes of the index-th training scene: singles in turn, and random pairs."""
    names = coco().names
    rng = np.random.default_rng((3, index))
    if rng.random() >= _PAIR_SHARE:
        return (names[index % len(names)],)
    first, second = rng.choice(len(names), 2, replace=False)
    return names[first], names[second]


def training_scene(seed: tuple[int, ...], class_names: tuple[str, ...]) -> Scene:
    """A scene of the world that the model learns."""
    return render_scene(seed, class_names, styles=DRAWN_STYLES, kind_shares=SCENE_KIND_SHARES)


def scene_latents(
    autoencoder: AutoencoderTiny, folder: Path, cache: Path, device: str, report: Callable[[str], None]
) -> tuple[Tensor, Tensor]:
    """Latents (N, 4, 16, 16) and object coverage (N, 16, 16), both float16, kept in the file `cache`.

    The latents are scaled to unit variance. `folder` is where the autoencoder comes from: a cache that another one
    made, or that holds other scenes, is made anew.
    """
    world = f"{DRAWN_STYLES} {SCENE_KIND_SHARES} {_PAIR_SHARE}"
    weights = (folder / "diffusion_pytorch_model.safetensors").read_bytes()
    made_by = hashlib.sha256(weights + world.encode()).hexdigest()
    if cache.exists():
        saved = torch.load(cache, weights_only=True)
        if saved.get("autoencoder") == made_by and len(saved["latents"]) == _SCENES:
            return saved["latents"], saved["coverage"]
        report(f"diffusion: {cache} is of another autoencoder or of other scenes; encoding again")
    latents, coverage = [], []
    for first in range(0, _SCENES, 100):
        scenes = [training_scene((3, k), scene_classes(k)) for k in range(first, first + 100)]
        pixels = torch.stack([to_tensor(scene.image) for scene in scenes]).to(device, memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(device.split(":")[0], torch.bfloat16):
            encoded = autoencoder.encode(pixels).latents * autoencoder.config["scaling_factor"]
        latents.append(encoded.cpu().half().contiguous())
        objects = torch.from_numpy(np.stack([scene.instance_map > 0 for scene in scenes])).float()[:, None]
        coverage.append(nn.functional.avg_pool2d(objects, 8)[:, 0].half())
        if first % 2000 == 0:
            report(f"diffusion: scene {first} of {_SCENES} encoded")
    stacked: dict[str, Any] = {"latents": torch.cat(latents), "coverage": torch.cat(coverage), "autoencoder": made_by}
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_suffix(".partial")
    torch.save(stacked, partial)
    partial.replace(cache)
    return stacked["latents"], stacked["coverage"]
