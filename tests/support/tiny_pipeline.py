"""A text-to-image pipeline of real diffusers classes with random weights, created in a second without a download."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from factory.config.vocabulary import caption, coco
from factory.stickers.tokens import train_tokenizer

MAX_TOKENS = 24
_WIDTH = 32


def tiny_pipeline(
    folder: Path, xl: bool = False, fine: bool = False, kl: bool = False, words: Sequence[str] = ()
) -> Path:
    """Write a pipeline of 64 x 64 images to `folder`, of Stable Diffusion's kind or XL's.

    Its latents are 8 x 8. `fine` ones are 16 x 16: an autoencoder of three levels, and a U-Net whose finest level has
    no attention. With `kl` the autoencoder is of Stable Diffusion's own class. The tokenizer knows the captions of
    single COCO classes and the `words`; with these it reads 77 tokens.
    """
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(words)
    vae = _kl_autoencoder() if kl else _autoencoder(3 if fine else 4)
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
    parts = {"vae": vae, "unet": _unet(xl, fine), "scheduler": scheduler, "tokenizer": tokenizer}
    if xl:
        first, second = (clip_text_encoder(tokenizer, projected) for projected in (False, True))
        pipeline = StableDiffusionXLPipeline(
            **parts, text_encoder=first, text_encoder_2=second, tokenizer_2=tokenizer, add_watermarker=False
        )
    else:
        pipeline = StableDiffusionPipeline(
            **parts,
            text_encoder=clip_text_encoder(tokenizer, False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def clip_tokenizer(words: Sequence[str] = ()) -> CLIPTokenizer:
    """CLIP's tokenizer with a token for every word of the captions, and for `words`; with these it reads 77 tokens."""
    tokenizer = train_tokenizer([*(caption([name]) for name in coco().names), *words])
    tokenizer.model_max_length = 77 if words else MAX_TOKENS
    return tokenizer


def _autoencoder(levels: int) -> AutoencoderTiny:
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8,) * levels,
        decoder_block_out_channels=(8,) * levels,
        num_encoder_blocks=(1,) * levels,
        num_decoder_blocks=(1,) * levels,
    )
    with torch.no_grad():
        list(vae.decoder.layers.children())[-1].weight.mul_(12)
    return vae


def _kl_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
    ).eval()


def _unet(xl: bool, fine: bool) -> UNet2DConditionModel:
    plain = ("DownBlock2D", "UpBlock2D") if fine else ()
    options = (
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + _WIDTH,
        }
        if xl
        else {}
    )
    return UNet2DConditionModel(
        sample_size=16 if fine else 8,
        block_out_channels=(_WIDTH,) * (3 if fine else 2),
        layers_per_block=1,
        cross_attention_dim=2 * _WIDTH if xl else _WIDTH,
        down_block_types=(*plain[:1], "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", *plain[1:]),
        attention_head_dim=2,
        norm_num_groups=8,
        **options,
    ).eval()


def clip_text_encoder(tokenizer: CLIPTokenizer, projected: bool) -> CLIPTextModel:
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=_WIDTH,
        projection_dim=_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return kind(config).eval()
