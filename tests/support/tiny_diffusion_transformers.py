"""Tiny pipelines of the other transformer families: real classes with random weights."""

from typing import Any

import diffusers
import transformers

from tests.support.tiny_parts import flow_matching, kl_autoencoder
from tests.support.tiny_pipeline import clip_text_encoder, clip_tokenizer
from tests.support.tiny_text_encoders import (
    HEADS,
    WIDTH,
    gemma_tokenizer,
    qwen_encoder,
    qwen_tokenizer,
    t5_encoder,
    t5_tokenizer,
)


def sd3() -> Any:
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=HEADS,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    first, second = (clip_text_encoder(clip, True) for _ in range(2))
    config = transformers.T5Config(
        vocab_size=len(t5), d_model=2 * WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=HEADS
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow_matching(shift=3.0),
        vae=kl_autoencoder(),
        text_encoder=first,
        tokenizer=clip,
        text_encoder_2=second,
        tokenizer_2=clip,
        text_encoder_3=transformers.T5EncoderModel(config).eval(),
        tokenizer_3=t5,
    )


def pixart() -> Any:
    tokenizer = t5_tokenizer()
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=HEADS,
        caption_channels=WIDTH,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        use_additional_conditions=False,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02)
    return diffusers.PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer),
        vae=kl_autoencoder(),
        transformer=transformer,
        scheduler=scheduler,
    )


def sana() -> Any:
    tokenizer = gemma_tokenizer()
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        head_dim=8,
    )
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=HEADS,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=HEADS,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
        patch_size=1,
    )
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_out_channels=(4,) * 6,
        decoder_block_out_channels=(4,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        scaling_factor=0.4,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    )
    return diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.Gemma2Model(config).eval(),
        vae=vae.eval(),
        transformer=transformer,
        scheduler=scheduler,
    )


def z_image() -> Any:
    tokenizer = qwen_tokenizer()
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=HEADS,
        n_kv_heads=HEADS,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return diffusers.ZImagePipeline(
        scheduler=flow_matching(shift=3.0),
        vae=kl_autoencoder(),
        text_encoder=qwen_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def qwen_image() -> Any:
    tokenizer = qwen_tokenizer()
    text = {"vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 2, 2),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.1] * 4, latents_std=[1.5] * 4
    )
    return diffusers.QwenImagePipeline(
        scheduler=flow_matching(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=vae.eval(),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=tokenizer,
        transformer=transformer,
    )
