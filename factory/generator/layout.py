"""Check from a diffusers pipeline's small files, without loading a model, whether the generator can run it.

A worker would find the same faults, but only after minutes of loading and after the dataset's folder was claimed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from factory.config.sections import GeneratorRecipe
from factory.errors import UserError
from factory.generator.schedulers import check_scheduler

LATENT_CONSISTENCY = "LatentConsistencyModelPipeline"
XL = "StableDiffusionXLPipeline"
KINDS = ("StableDiffusionPipeline", XL, LATENT_CONSISTENCY)
"""Supported pipeline classes."""

MODELS: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModel", "CLIPTextModelWithProjection"),
}
"""The components with weights, and the supported classes of each."""

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that generation does not use: they are never loaded and may be missing."""

_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("fp16", "bf16", "fp32")


def read_index(folder: Path) -> dict[str, Any]:
    """The pipeline's `model_index.json`. Raises UserError unless it exists and names one of KINDS."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"{folder} is not a diffusers pipeline: there is no model_index.json; give a folder that has one."
        )
    data = _read(index)
    if "_class_name" not in data:
        raise UserError(f"{index} does not name the pipeline's class; save the pipeline again.")
    check_kind(data["_class_name"], str(folder))
    return data


def check_kind(kind: object, where: str) -> None:
    """Raise UserError unless the pipeline's class is one of KINDS."""
    if kind not in KINDS:
        raise UserError(f"{where} is a {kind}; supported pipelines are {', '.join(KINDS)}.")


def component_names(index: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(components with weights, tokenizers) of a pipeline."""
    second = index["_class_name"] == XL
    models = ("unet", "vae", "text_encoder", *(("text_encoder_2",) if second else ()))
    return models, ("tokenizer", *(("tokenizer_2",) if second else ()))


def component_class(index: Mapping[str, Any], name: str, where: str) -> str:
    """The class of a component. Raises UserError if it is missing or not supported."""
    entry = index.get(name)
    kind = entry[1] if isinstance(entry, list | tuple) and len(entry) == 2 else None
    if kind is None:
        raise UserError(f"the model_index.json of {where} does not name a {name}; download or save the pipeline again.")
    allowed = MODELS.get(name) or (_TOKENIZERS if name.startswith("tokenizer") else (str(kind),))
    if kind not in allowed:
        raise UserError(f"the {name} of {where} is a {kind}; supported are {' and '.join(allowed)}.")
    return str(kind)


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """The configuration of a component. Raises UserError if its file is missing or broken."""
    file = "scheduler_config.json" if name == "scheduler" else "config.json"
    return _read(folder / name / file)


def check_layout(folder: Path, generator: GeneratorRecipe, weights: bool = True) -> None:
    """Raise UserError for the first fault that would keep this pipeline from generating the recipe's images.

    `weights` says whether the folder must hold them: those of a hub model are downloaded later, and a checkpoint has
    its own file.
    """
    index = read_index(folder)
    models, tokenizers = component_names(index)
    for name in models:
        component_class(index, name, str(folder))
        read_config(folder, name)
        if weights:
            weights_variant(folder / name)
    for name in tokenizers:
        component_class(index, name, str(folder))
        if not any((folder / name / file).is_file() for file in _TOKENIZER_FILES):
            raise UserError(
                f"{folder / name} is not a tokenizer: there is neither {' nor '.join(_TOKENIZER_FILES)}; download or "
                f"save the pipeline again."
            )
    unet, vae = read_config(folder, "unet"), read_config(folder, "vae")
    _check_shapes(folder, index, unet, vae)
    _check_size(folder, generator, unet, vae)
    kind = component_class(index, "scheduler", str(folder))
    check_scheduler(kind, read_config(folder, "scheduler"), unet, generator, str(folder))


def weights_variant(folder: Path) -> str | None:
    """The variant of a component's weights to load: None for the plain files, or e.g. "fp16" if only that exists.

    Raises UserError if there are no weights.
    """
    names = {path.name for path in folder.glob("*")} if folder.is_dir() else set()
    plain = {f"{stem}{end}" for stem in _STEMS for end in (".safetensors", ".bin")}
    plain |= {f"{name}.index.json" for name in plain}
    if names & plain:
        return None
    found = {name.split(".")[1] for name in names if _is_variant(name)}
    found |= {name.split(".")[-2] for name in names if ".index." in name and name.endswith(".json")}
    found = {name.split("-")[0] for name in found}
    for variant in (*_VARIANTS, *sorted(found)):
        if variant in found:
            return variant
    raise UserError(
        f"{folder} holds no weights: there is none of {', '.join(sorted(plain)[:4])} or their variants; download or "
        f"save the pipeline again."
    )


def pixels_per_latent(vae: Mapping[str, Any]) -> int:
    """Pixels per latent along each side, from the autoencoder's configuration."""
    blocks = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or (64,)
    return int(2 ** (len(blocks) - 1))


def attention_levels(unet: Mapping[str, Any]) -> set[int]:
    """The reductions at which a U-Net has cross-attention, where the finest such level is 1."""
    default = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    with_attention = [k for k, kind in enumerate(unet.get("down_block_types") or default) if "CrossAttn" in str(kind)]
    return {2 ** (level - with_attention[0]) for level in with_attention}


def _is_variant(name: str) -> bool:
    parts = name.split(".")
    return len(parts) == 3 and parts[0] in _STEMS and parts[2] in ("safetensors", "bin")


def _check_shapes(folder: Path, index: Mapping[str, Any], unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Check what would fail at the U-Net's first call: that the components fit each other."""
    inputs, outputs, latent = unet.get("in_channels", 4), unet.get("out_channels", 4), vae.get("latent_channels", 4)
    if not inputs == outputs == latent:
        raise UserError(
            f"the U-Net of {folder} has {inputs} input and {outputs} output channels, and its autoencoder's latents "
            f"have {latent}: all must be equal in a text-to-image model; inpainting and depth models are not supported."
        )
    models, _ = component_names(index)
    encoders = [read_config(folder, name) for name in models if name.startswith("text_encoder")]
    width, expected = sum(int(encoder.get("hidden_size", 512)) for encoder in encoders), _text_channels(unet)
    if isinstance(expected, int) and expected != width:
        raise UserError(
            f"the U-Net of {folder} expects text embeddings of {expected} channels, but its text encoders give "
            f"{width}: they do not match; download or save the pipeline again."
        )
    xl, embedded = index["_class_name"] == XL, unet.get("addition_embed_type")
    if embedded != ("text_time" if xl else None) or unet.get("class_embed_type") is not None:
        raise UserError(
            f"the U-Net of {folder} has additional embeddings {embedded!r} and class embeddings "
            f"{unet.get('class_embed_type')!r}, which a {index['_class_name']} does not provide."
        )


def _text_channels(unet: Mapping[str, Any]) -> Any:
    return unet.get("encoder_hid_dim") or unet.get("cross_attention_dim", 1280)


def _check_size(folder: Path, generator: GeneratorRecipe, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    factor = pixels_per_latent(vae)
    wrong = [size for size in (generator.width, generator.height) if size is not None and size % factor]
    if wrong:
        raise UserError(
            f"{folder} cannot generate images of {generator.width or 'default'} x {generator.height or 'default'}: "
            f"width and height must be multiples of {factor}, the pixels per latent."
        )
    if not unet.get("sample_size") and not (generator.width and generator.height):
        raise UserError(
            f"the U-Net of {folder} has no default size; set generator.width and generator.height in the recipe."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise TypeError(f"it contains a {type(data).__name__}")
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}; download or save the pipeline again.") from error
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); download or save the pipeline again.") from error
    return data
