"""What a diffusers pipeline must hold to be run here, read from its small files alone: no model is loaded.

A worker finds the same mistakes, but only after minutes of loading and after the dataset's folder was claimed.
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
"""Classes of pipelines that the generator runs."""

MODELS: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModel", "CLIPTextModelWithProjection"),
}
"""The components that have weights, and the classes that they may be of."""

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that take no part in making an image: never loaded, so it does not matter whether they are there."""

_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("fp16", "bf16", "fp32")


def read_index(folder: Path) -> dict[str, Any]:
    """The pipeline's `model_index.json`; UserError unless it is there and of one of KINDS."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"{folder} holds no diffusers pipeline: there is no model_index.json. Give a folder that has one."
        )
    data = _read(index)
    if "_class_name" not in data:
        raise UserError(f"{index} does not name the pipeline's class; save the pipeline again.")
    check_kind(data["_class_name"], str(folder))
    return data


def check_kind(kind: object, where: str) -> None:
    """UserError for a pipeline of another class than KINDS."""
    if kind not in KINDS:
        raise UserError(f"{where} is a {kind}; this release runs {', '.join(KINDS)}.")


def component_names(index: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(components with weights, tokenizers) of a pipeline of this class."""
    second = index["_class_name"] == XL
    models = ("unet", "vae", "text_encoder", *(("text_encoder_2",) if second else ()))
    return models, ("tokenizer", *(("tokenizer_2",) if second else ()))


def component_class(index: Mapping[str, Any], name: str, where: str) -> str:
    """The class of a component; UserError where there is none or one that this release does not run."""
    entry = index.get(name)
    kind = entry[1] if isinstance(entry, list | tuple) and len(entry) == 2 else None
    if kind is None:
        raise UserError(f"{where} has no {name} in its model_index.json; download or save the pipeline again.")
    allowed = MODELS.get(name) or (_TOKENIZERS if name.startswith("tokenizer") else (str(kind),))
    if kind not in allowed:
        raise UserError(f"the {name} of {where} is a {kind}; this release runs {' or '.join(allowed)}.")
    return str(kind)


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """The configuration of a component; UserError where its file is missing or broken."""
    file = "scheduler_config.json" if name == "scheduler" else "config.json"
    return _read(folder / name / file)


def check_layout(folder: Path, generator: GeneratorRecipe, weights: bool = True) -> None:
    """UserError for the first thing that would stop this pipeline from making the images that are asked for.

    `weights` says whether the folder must hold them; a hub model's are downloaded later, a checkpoint's are elsewhere.
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
                f"{folder / name} holds no tokenizer: there is neither {' nor '.join(_TOKENIZER_FILES)}. Download or "
                f"save the pipeline again."
            )
    unet, vae = read_config(folder, "unet"), read_config(folder, "vae")
    _check_shapes(folder, index, unet, vae)
    _check_size(folder, generator, unet, vae)
    kind = component_class(index, "scheduler", str(folder))
    check_scheduler(kind, read_config(folder, "scheduler"), unet, generator, str(folder))


def weights_variant(folder: Path) -> str | None:
    """Which variant of a component's weights to load: None for the plain files, or "fp16" where only those are there.

    UserError where there are none.
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
        f"{folder} holds no weights: none of {', '.join(sorted(plain)[:4])} and their variants is there. Download or "
        f"save the pipeline again."
    )


def pixels_per_latent(vae: Mapping[str, Any]) -> int:
    """How many pixels a latent stands for, along each side; from the autoencoder's configuration."""
    blocks = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or (64,)
    return int(2 ** (len(blocks) - 1))


def attention_levels(unet: Mapping[str, Any]) -> set[int]:
    """The reductions at which a U-Net has cross-attention, counted from the finest such level as 1."""
    default = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    with_attention = [k for k, kind in enumerate(unet.get("down_block_types") or default) if "CrossAttn" in str(kind)]
    return {2 ** (level - with_attention[0]) for level in with_attention}


def _is_variant(name: str) -> bool:
    parts = name.split(".")
    return len(parts) == 3 and parts[0] in _STEMS and parts[2] in ("safetensors", "bin")


def _check_shapes(folder: Path, index: Mapping[str, Any], unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """The parts fit each other, as the U-Net's first call would find."""
    given, made, latent = unet.get("in_channels", 4), unet.get("out_channels", 4), vae.get("latent_channels", 4)
    if not given == made == latent:
        raise UserError(
            f"the U-Net of {folder} takes {given} channels and gives {made}, and its autoencoder's latents have "
            f"{latent}: all must be equal in a text-to-image model. Inpainting and depth models are of another kind."
        )
    models, _ = component_names(index)
    encoders = [read_config(folder, name) for name in models if name.startswith("text_encoder")]
    width, expected = sum(int(row.get("hidden_size", 512)) for row in encoders), _text_channels(unet)
    if isinstance(expected, int) and expected != width:
        raise UserError(
            f"the U-Net of {folder} reads text of {expected} channels, and its text encoders give {width}: they do "
            f"not belong together. Download or save the pipeline again."
        )
    xl, embedded = index["_class_name"] == XL, unet.get("addition_embed_type")
    if embedded != ("text_time" if xl else None) or unet.get("class_embed_type") is not None:
        raise UserError(
            f"the U-Net of {folder} has additional embeddings {embedded!r} and class embeddings "
            f"{unet.get('class_embed_type')!r}, which a {index['_class_name']} does not give it."
        )


def _text_channels(unet: Mapping[str, Any]) -> Any:
    return unet.get("encoder_hid_dim") or unet.get("cross_attention_dim", 1280)


def _check_size(folder: Path, generator: GeneratorRecipe, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    factor = pixels_per_latent(vae)
    wrong = [size for size in (generator.width, generator.height) if size is not None and size % factor]
    if wrong:
        raise UserError(
            f"images of {generator.width or 'the model'} x {generator.height or 'the model'} cannot be made by "
            f"{folder}: width and height must be multiples of {factor}, the pixels of one latent."
        )
    if not unet.get("sample_size") and not (generator.width and generator.height):
        raise UserError(f"the U-Net of {folder} names no size; set generator.width and generator.height in the recipe.")


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise TypeError(f"it holds a {type(data).__name__}")
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}; download or save the pipeline again.") from error
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); download or save the pipeline again.") from error
    return data
