"""Pipelines in the sizes of published models with random weights, to measure time and memory without a download."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.support.tiny_pipeline import clip_tokenizer
from tests.support.tiny_text_encoders import t5_tokenizer, words

_CLIP_VOCABULARY = 49408
_NOISE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def sd15() -> Any:
    """Stable Diffusion 1.5: 512 x 512 pixels, a U-Net of 860 M parameters."""
    tokenizer = clip_tokenizer(words())
    return diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        vae=_kl(512, 0.18215),
        scheduler=diffusers.DDIMScheduler(**_NOISE, steps_offset=1, clip_sample=False, set_alpha_to_one=False),
        text_encoder=_clip(tokenizer, 768, 12),
        tokenizer=tokenizer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    """Stable Diffusion XL: 1024 x 1024 pixels, a U-Net of 2.6 B parameters."""
    tokenizer = clip_tokenizer(words())
    unet = diffusers.UNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    return diffusers.StableDiffusionXLPipeline(
        unet=unet,
        vae=_kl(1024, 0.13025),
        scheduler=diffusers.EulerDiscreteScheduler(**_NOISE, steps_offset=1),
        text_encoder=_clip(tokenizer, 768, 12),
        tokenizer=tokenizer,
        text_encoder_2=_clip(tokenizer, 1280, 32, projected=True),
        tokenizer_2=tokenizer,
        add_watermarker=False,
    )


def flux() -> Any:
    """FLUX.1 dev: 1024 x 1024 pixels, a transformer of 12 B parameters and T5-XXL."""
    clip, t5 = clip_tokenizer(words()), t5_tokenizer()
    encoder = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=32128,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
        )
    )
    return diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(guidance_embeds=True),
        vae=_kl(1024, 0.3611, channels=16, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        text_encoder=_clip(clip, 768, 12),
        tokenizer=clip,
        text_encoder_2=encoder,
        tokenizer_2=t5,
    )


SHAPES: dict[str, Callable[[], Any]] = {"sd15": sd15, "sdxl": sdxl, "flux": flux}


def random_pipeline(shape: str, folder: Path, dtype: torch.dtype) -> Path:
    """Write a pipeline of the shape with random weights to a folder, in this precision."""
    torch.manual_seed(0)
    with _default(dtype):
        pipeline = SHAPES[shape]()
    pipeline.save_pretrained(folder)
    return folder


def _kl(side: int, scale: float, channels: int = 4, **options: Any) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=channels,
        sample_size=side,
        scaling_factor=scale,
        **options,
    )


def _clip(tokenizer: Any, width: int, layers: int, projected: bool = False) -> Any:
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    config = transformers.CLIPTextConfig(
        vocab_size=_CLIP_VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return kind(config)


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
