"""A tiny pipeline of every family's real classes with random weights, created in about a second without a download."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.support.tiny_pipeline import clip_text_encoder, clip_tokenizer, tiny_pipeline
from tests.support.tiny_text_encoders import (
    HEADS,
    WIDTH,
    gemma_tokenizer,
    qwen_encoder,
    qwen_tokenizer,
    t5_encoder,
    t5_tokenizer,
)


def flow(**options: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def kl(channels: int) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=2,
        shift_factor=0.06,
        scaling_factor=1.5,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def _sd3() -> Any:
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
        scheduler=flow(shift=3.0),
        vae=kl(4),
        text_encoder=first,
        tokenizer=clip,
        text_encoder_2=second,
        tokenizer_2=clip,
        text_encoder_3=transformers.T5EncoderModel(config).eval(),
        tokenizer_3=t5,
    )


def _flux(guidance: bool) -> Any:
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
        scheduler=flow(use_dynamic_shifting=guidance),
        vae=kl(4),
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
    return {"scheduler": flow(use_dynamic_shifting=True), "vae": vae.eval(), "transformer": transformer}


def _klein(distilled: bool) -> Any:
    tokenizer = qwen_tokenizer()
    text_encoder = qwen_encoder(tokenizer, "Qwen3ForCausalLM", layers=28)
    return diffusers.Flux2KleinPipeline(
        **_flux2_parts(WIDTH, False), text_encoder=text_encoder, tokenizer=tokenizer, is_distilled=distilled
    )


def _flux2() -> Any:
    tokenizer = qwen_tokenizer()
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 31}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "model_type": "mistral"}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Mistral3Config(text_config=text, vision_config={**vision, "model_type": "pixtral"})
    encoder = transformers.Mistral3ForConditionalGeneration(config).eval()
    return diffusers.Flux2Pipeline(**_flux2_parts(16, True), text_encoder=encoder, tokenizer=tokenizer)


def _chroma() -> Any:
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
        scheduler=flow(use_dynamic_shifting=True),
        vae=kl(4),
        text_encoder=t5_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def _pixart() -> Any:
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
        vae=kl(4),
        transformer=transformer,
        scheduler=scheduler,
    )


def _sana() -> Any:
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


def _z_image() -> Any:
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
        scheduler=flow(shift=3.0),
        vae=kl(4),
        text_encoder=qwen_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def _qwen_image() -> Any:
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
        scheduler=flow(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=vae.eval(),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=tokenizer,
        transformer=transformer,
    )


BUILDERS: dict[str, Callable[[], Any]] = {
    "sd3": _sd3,
    "flux-dev": lambda: _flux(True),
    "flux-schnell": lambda: _flux(False),
    "flux2": _flux2,
    "flux2-klein-base": lambda: _klein(False),
    "flux2-klein": lambda: _klein(True),
    "chroma": _chroma,
    "pixart-sigma": _pixart,
    "sana": _sana,
    "z-image": _z_image,
    "qwen-image": _qwen_image,
}
"""The transformer families; U-Nets are made by `tiny_pipeline`."""

SIDES = {"sana": 128}
"""The images' sides in pixels where they are not 64."""


def tiny_family(name: str, folder: Path) -> Path:
    """Write a pipeline of 4 x 4 image tokens to `folder`: a row of BUILDERS, `sd` or `sdxl`."""
    if name in ("sd", "sdxl"):
        return tiny_pipeline(folder, xl=name == "sdxl")
    torch.manual_seed(0)
    pipeline = BUILDERS[name]()
    with torch.no_grad():  # zero-initialised layers would hide what the inputs do
        for value in pipeline.transformer.parameters():
            if not value.any():
                value.normal_(std=0.1)
    pipeline.save_pretrained(folder)
    if name == "flux2":
        index = json.loads((folder / "model_index.json").read_text())
        index["tokenizer"] = ["transformers", "PixtralProcessor"]
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder
