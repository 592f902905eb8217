"""Tiny pipelines of FLUX.1, FLUX.2 and Chroma: real classes with random weights."""

from typing import Any

import diffusers
import transformers

from tests.support.tiny_parts import flow_matching, kl_autoencoder
from tests.support.tiny_pipeline import clip_text_encoder, clip_tokenizer
from tests.support.tiny_text_encoders import (
    HEADS,
    WIDTH,
    qwen_encoder,
    qwen_tokenizer,
    t5_encoder,
    t5_tokenizer,
)


def flux(guidance: bool) -> Any:
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 2, 2),
    )
    return diffusers.FluxPipeline(
        scheduler=flow_matching(use_dynamic_shifting=guidance),
        vae=kl_autoencoder(),
        text_encoder=clip_text_encoder(clip, False),
        tokenizer=clip,
        text_encoder_2=t5_encoder(t5),
        tokenizer_2=t5,
        transformer=transformer,
    )


def _flux2_parts(width: int, guidance: bool) -> dict[str, Any]:
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4,) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=2
    )
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=HEADS,
        joint_attention_dim=3 * width,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=guidance,
    )
    return {"scheduler": flow_matching(use_dynamic_shifting=True), "vae": vae.eval(), "transformer": transformer}


def flux2_klein(distilled: bool) -> Any:
    tokenizer = qwen_tokenizer()
    text_encoder = qwen_encoder(tokenizer, "Qwen3ForCausalLM", layers=28)
    return diffusers.Flux2KleinPipeline(
        **_flux2_parts(WIDTH, False), text_encoder=text_encoder, tokenizer=tokenizer, is_distilled=distilled
    )


def flux2() -> Any:
    tokenizer = qwen_tokenizer()
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 31}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "model_type": "mistral"}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Mistral3Config(text_config=text, vision_config={**vision, "model_type": "pixtral"})
    encoder = transformers.Mistral3ForConditionalGeneration(config).eval()
    return diffusers.Flux2Pipeline(**_flux2_parts(16, True), text_encoder=encoder, tokenizer=tokenizer)


def chroma() -> Any:
    tokenizer = t5_tokenizer()
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 2, 2),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return diffusers.ChromaPipeline(
        scheduler=flow_matching(use_dynamic_shifting=True),
        vae=kl_autoencoder(),
        text_encoder=t5_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
    )
