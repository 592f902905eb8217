"""The embedded text-to-image model: its architecture, and loading and saving as a standard diffusers pipeline."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from factory.errors import UserError
from factory.files.atomic import write_atomically
from factory.generator.weights import load_model
from factory.stickers.embedded import open_pipeline
from factory.stickers.tokens import MAX_TOKENS

NOISE: dict[str, Any] = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
"""The linear schedule of DDPM.

With the schedule of Stable Diffusion, the last noise level still shows the mean colour of an image and its coarse
layout, because both are averages over many latents. Sampling starts from pure noise, so the images of a class varied
by only 0.6 to 0.7 of what training scenes do. See Lin et al., *Common Diffusion Noise Schedules and Sample Steps Are
Flawed* (WACV 2024).
"""
LATENT_FACTOR = 4
"""Downsampling factor of the autoencoder: image side over latent side."""
LATENT_CHANNELS = 6
"""Two more than in Stable Diffusion: with 4, training of the autoencoder levels off below 31 dB (docs/log.md)."""
_TEXT_WIDTH = 192


class TextToImage(nn.Module):
    """The two parts that are trained together: a U-Net with 10.8 M parameters and a text encoder with 1.0 M.

    There is no attention at 32 x 32: it would cost more than all other levels together, and cross-attention at 16 x 16
    is sufficient to place objects.
    """

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=32,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            block_out_channels=(48, 96, 144, 160),
            layers_per_block=1,
            cross_attention_dim=_TEXT_WIDTH,
            down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
            up_block_types=(*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
            attention_head_dim=(2, 3, 4, 5),
            norm_num_groups=16,
        )
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=_TEXT_WIDTH,
                intermediate_size=4 * _TEXT_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=MAX_TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )

    def forward(self, noisy: Tensor, timesteps: Tensor, token_ids: Tensor) -> Tensor:
        """Predicted v (B, 6, 32, 32) of noisy latents, for token ids (B, MAX_TOKENS)."""
        states = self.text_encoder(token_ids)[0]
        prediction: Tensor = self.unet(noisy, timesteps, states).sample
        return prediction


def new_text_to_image(tokenizer: CLIPTokenizer, device: str) -> TextToImage:
    """The model with random weights, which are the same for every call."""
    torch.manual_seed(0)
    model = TextToImage(tokenizer).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert isinstance(model, TextToImage)
    if device == "cpu":  # where the backward pass of fused attention is slower than that of plain attention
        model.unet.set_attn_processor(AttnProcessor())
    return model


def load_weights(model: TextToImage, folder: Path) -> None:
    """Copy the weights of a saved pipeline.

    UserError if a tensor is missing, RuntimeError if shapes differ.
    """
    parts = open_pipeline(folder)
    model.unet.load_state_dict(parts.unet.state_dict())
    model.text_encoder.load_state_dict(parts.text_encoder.state_dict())


def open_autoencoder(folder: Path, device: str) -> AutoencoderTiny:
    """Open a trained autoencoder in float32. UserError if the folder does not contain one."""
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} does not contain an autoencoder; run `factory stickers train autoencoder` first.")
    autoencoder: AutoencoderTiny = load_model(AutoencoderTiny, folder, "autoencoder")
    autoencoder.to(device, memory_format=torch.channels_last)
    autoencoder.register_to_config(_name_or_path="")  # otherwise saved configs would contain a local path
    return autoencoder.eval()


def as_pipeline(
    model: TextToImage, tokenizer: CLIPTokenizer, autoencoder: AutoencoderTiny, few_steps: bool = False
) -> StableDiffusionPipeline:
    """A standard pipeline with DPM-Solver++, or with the DDIM scheduler that few-step models were distilled with."""
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=ddim() if few_steps else dpm_solver(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def dpm_solver() -> DPMSolverMultistepScheduler:
    """The default scheduler. `from_config` of another scheduler would drop settings that equal its defaults."""
    return DPMSolverMultistepScheduler(
        **NOISE, prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=1
    )


def ddim() -> DDIMScheduler:
    """DDIM with a final step that ends at clean latents."""
    return DDIMScheduler(
        **NOISE,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=True,
    )


def save_pipeline(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Write a diffusers folder with float16 weights that loads in float32."""
    pipeline.to(torch.float16).save_pretrained(folder)
    open_in_float32(folder / "text_encoder")


def open_in_float32(folder: Path) -> None:
    """Make a saved transformers model load in float32, regardless of the dtype of its weights.

    transformers loads a folder in the dtype of its config, but diffusers in float32. A config with float16 would result
    in a text encoder that is incompatible with the U-Net.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    write_atomically(path, json.dumps(config, indent=2) + "\n")
