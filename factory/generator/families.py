"""The supported families of text-to-image models, one row each. Importing this module loads no model library.

A row defines the pipeline classes of a family, the names of the denoiser's arguments, the positions of image and text
tokens in its attention, and the noise level and blocks at which masks are read. Sampling does not need this table,
because images come from the call of the pipeline.
"""

from collections.abc import Mapping
from typing import Any

from factory.errors import UserError
from factory.generator.family import Encoder, Family
from factory.generator.text_columns import after_template, first_and_last, without_padding
from factory.generator.text_templates import with_system_message, with_thinking, without_thinking

_KL = ("AutoencoderKL", "AutoencoderTiny")
_CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
_CLIP_TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast")
_T5 = ("T5EncoderModel",)
_T5_TOKENIZER = ("T5Tokenizer", "T5TokenizerFast")
_QWEN_TOKENIZER = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler")
_FLOW_WITH_SIGMAS = (*_FLOW, "UniPCMultistepScheduler")
"""Schedulers that take the noise levels that a pipeline computes."""
_FLOW_ANY = (
    *_FLOW_WITH_SIGMAS, "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "FlowMatchHeunDiscreteScheduler",
)  # fmt: skip

_UNET: dict[str, Any] = {
    "denoiser": "unet",
    "denoiser_classes": ("UNet2DConditionModel",),
    "latents": "sample",
    "tokens": "cross",
    "attention": "attn2",
    "self_attention": "attn1",
    "blocks": (),
    "noise_level": 0.256,
    "size": None,
}

_FLUX: dict[str, Any] = {
    "denoiser_time": lambda timestep, config: timestep / 1000,
    "packed": True,
    "blocks": ("transformer_blocks", "single_transformer_blocks"),
    # The later half of the double blocks, of 19 double and 38 single ones (Helbling et al., ConceptAttention, 2025).
    "read_blocks": (10 / 57, 19 / 57),
    "feature_blocks": 4,
}

FAMILIES: tuple[Family, ...] = (
    Family(
        name="Stable Diffusion 1 and 2",
        pipelines=("StableDiffusionPipeline", "LatentConsistencyModelPipeline"),
        models={"vae": _KL, "text_encoder": _CLIP},
        tokenizers={"tokenizer": _CLIP_TOKENIZER},
        **_UNET,
    ),
    Family(
        name="Stable Diffusion XL",
        pipelines=("StableDiffusionXLPipeline",),
        models={"vae": _KL, "text_encoder": _CLIP, "text_encoder_2": _CLIP},
        tokenizers={"tokenizer": _CLIP_TOKENIZER, "tokenizer_2": _CLIP_TOKENIZER},
        **_UNET,
    ),
    Family(
        name="Stable Diffusion 3",
        pipelines=("StableDiffusion3Pipeline",),
        denoiser_classes=("SD3Transformer2DModel",),
        models={"vae": _KL, "text_encoder": _CLIP, "text_encoder_2": _CLIP, "text_encoder_3": _T5},
        tokenizers={"tokenizer": _CLIP_TOKENIZER, "tokenizer_2": _CLIP_TOKENIZER, "tokenizer_3": _T5_TOKENIZER},
        optional=("text_encoder_3", "tokenizer_3"),
        tokens="image first",
        patch=None,
        encoders=(Encoder(), Encoder("text_encoder_3", "tokenizer_3", max_tokens=256)),
        # Block 9 of 24 at a share of 0.515 (Kim et al., Seg4Diff, 2025).
        noise_level=0.515,
        read_blocks=(9 / 24, 10 / 24),
        default_steps=28,
        default_guidance=7.0,
        size=None,
        flow_schedulers=_FLOW_ANY,
    ),
    Family(
        name="FLUX.1",
        pipelines=("FluxPipeline",),
        denoiser_classes=("FluxTransformer2DModel",),
        models={"vae": _KL, "text_encoder": _CLIP, "text_encoder_2": _T5},
        tokenizers={"tokenizer": _CLIP_TOKENIZER, "tokenizer_2": _T5_TOKENIZER},
        encoders=(Encoder("text_encoder_2", "tokenizer_2", max_tokens=512),),
        negative=False,
        default_steps=28,
        default_guidance=3.5,
        flow_schedulers=_FLOW_WITH_SIGMAS,
        **_FLUX,
    ),
    Family(
        name="FLUX.2",
        pipelines=("Flux2Pipeline", "Flux2KleinPipeline"),
        denoiser_classes=("Flux2Transformer2DModel",),
        models={
            "vae": ("AutoencoderKLFlux2",),
            "text_encoder": ("Mistral3ForConditionalGeneration", "Qwen3ForCausalLM"),
        },
        tokenizers={"tokenizer": (*_QWEN_TOKENIZER, "PixtralProcessor", "AutoProcessor")},
        encoders=(
            Encoder(
                max_tokens=512,
                templates={"Flux2Pipeline": with_system_message, "Flux2KleinPipeline": without_thinking},
            ),
        ),
        negative=False,
        default_steps=50,
        default_guidance=4.0,
        flow_schedulers=_FLOW_WITH_SIGMAS,
        **_FLUX,
    ),
    Family(
        name="Chroma",
        pipelines=("ChromaPipeline",),
        denoiser_classes=("ChromaTransformer2DModel",),
        models={"vae": _KL, "text_encoder": _T5},
        tokenizers={"tokenizer": _T5_TOKENIZER},
        encoders=(Encoder(max_tokens=512),),
        default_steps=35,
        default_guidance=5.0,
        flow_schedulers=_FLOW_WITH_SIGMAS,
        **_FLUX,
    ),
    Family(
        name="PixArt-Sigma",
        pipelines=("PixArtSigmaPipeline",),
        denoiser_classes=("PixArtTransformer2DModel",),
        models={"vae": _KL, "text_encoder": _T5},
        tokenizers={"tokenizer": _T5_TOKENIZER},
        tokens="cross",
        attention="attn2",
        self_attention="attn1",
        patch=None,
        encoders=(Encoder(max_tokens=300),),
        default_steps=20,
        default_guidance=4.5,
        # Prompt cleaning would depend on optional packages.
        call={"use_resolution_binning": False, "clean_caption": False},
        size=None,
    ),
    Family(
        name="Sana",
        pipelines=("SanaPipeline",),
        denoiser_classes=("SanaTransformer2DModel",),
        models={"vae": ("AutoencoderDC",), "text_encoder": ("Gemma2Model", "Gemma2ForCausalLM")},
        tokenizers={"tokenizer": ("GemmaTokenizer", "GemmaTokenizerFast")},
        denoiser_time=lambda timestep, config: timestep * float(config.get("timestep_scale", 1.0)),
        tokens="cross",
        attention="attn2",
        patch=None,
        # 298 tokens of the prompt after the instruction, whose first token counts here as well.
        encoders=(Encoder(columns=first_and_last, max_tokens=299),),
        default_steps=20,
        default_guidance=4.5,
        call={"use_resolution_binning": False},
        size=None,
        flow_schedulers=_FLOW_ANY,
    ),
    Family(
        name="Z-Image",
        pipelines=("ZImagePipeline",),
        denoiser_classes=("ZImageTransformer2DModel",),
        models={"vae": _KL, "text_encoder": ("Qwen3Model", "Qwen3ForCausalLM")},
        tokenizers={"tokenizer": _QWEN_TOKENIZER},
        latents="x",
        time="t",
        text="cap_feats",
        denoiser_time=lambda timestep, config: (1000 - timestep) / 1000,
        listed=True,
        tokens="image first",
        attention="attention",
        blocks=("layers",),
        padded_to=32,
        encoders=(Encoder(columns=without_padding, max_tokens=512, templates={"ZImagePipeline": with_thinking}),),
        unguided_scale=0.0,
        default_steps=50,
        default_guidance=5.0,
        feature_blocks=4,
        flow_schedulers=_FLOW,
    ),
    Family(
        name="Qwen-Image",
        pipelines=("QwenImagePipeline",),
        denoiser_classes=("QwenImageTransformer2DModel",),
        models={"vae": ("AutoencoderKLQwenImage",), "text_encoder": ("Qwen2_5_VLForConditionalGeneration",)},
        tokenizers={"tokenizer": _QWEN_TOKENIZER},
        denoiser_time=lambda timestep, config: timestep / 1000,
        packed=True,
        # Read after the template.
        encoders=(Encoder(columns=after_template, max_tokens=512),),
        feature_blocks=4,
        guidance_argument="true_cfg_scale",
        default_steps=50,
        default_guidance=4.0,
        flow_schedulers=_FLOW_WITH_SIGMAS,
    ),
)
"""The supported families; other pipeline classes are rejected."""

PIPELINES: Mapping[str, Family] = {kind: family for family in FAMILIES for kind in family.pipelines}


def family_of(kind: object, where: str) -> Family:
    """The family of a pipeline class. Raises UserError if it is not in the table."""
    if isinstance(kind, list):  # [module, class] of a pipeline with its own code
        kind = f"custom pipeline with code in {'.'.join(map(str, kind[:1]))}.py, which is not run"
    if not isinstance(kind, str) or kind not in PIPELINES:
        raise UserError(f"{where} is a {kind}; supported pipelines are {', '.join(PIPELINES)}.")
    return PIPELINES[kind]


def default_read_blocks(family: Family, count: int) -> tuple[int, ...]:
    """The numbers of the blocks, of `count`, whose attention is used for `attention` masks; at least one."""
    start, stop = (round(share * count) for share in family.read_blocks)
    start = min(start, count - 1)
    return tuple(range(start, max(stop, start + 1)))


def default_feature_blocks(family: Family, count: int) -> tuple[int, ...]:
    """The numbers of the blocks, of `count`, whose outputs are features: evenly spaced, the last one among them."""
    chosen = min(family.feature_blocks, count)
    return tuple(round((k + 1) * count / chosen) - 1 for k in range(chosen))
