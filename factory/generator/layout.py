"""Checks from the small files of a diffusers pipeline, without loading a model, whether it can be used.

A worker would find the same problems, but only after minutes of loading and after the dataset was created.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from factory.config.guidance import CONSTANT
from factory.config.sections import GeneratorRecipe
from factory.errors import UserError, one_line
from factory.files.decode import read_json_object
from factory.generator.families import family_of
from factory.generator.family import Family
from factory.generator.schedulers import check_scheduler
from factory.generator.sizes import check_sizes, check_weights

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that generation does not use: they are never loaded and may be missing."""

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
VARIANTS = ("fp16", "bf16", "fp32")
"""Variants of weights, in the order in which they are tried where the plain files do not exist."""
_RENAMED = {"Transformer2DModel": "PixArtTransformer2DModel"}
"""Former names of classes, which the index files of published models still have."""


def read_index(folder: Path) -> dict[str, Any]:
    """The pipeline's `model_index.json`. Raises UserError unless it exists and names a class of the table."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"{folder} is not a diffusers pipeline: there is no model_index.json; give a folder that has one."
        )
    data = read_json(index)
    if "_class_name" not in data:
        raise UserError(f"{index} does not name the pipeline's class; save the pipeline again.")
    family_of(data["_class_name"], str(folder))
    return data


def family_in(index: Mapping[str, Any]) -> Family:
    """The family of a pipeline, by its `model_index.json`."""
    return family_of(index["_class_name"], "the pipeline")


def component_names(index: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(components with weights, the denoiser first; tokenizers) of a pipeline, without optional ones that it lacks."""
    family = family_in(index)
    lacking = {name for name in family.optional if _named(index, name) is None}
    models = [name for name in family.models if name not in lacking]
    return (family.denoiser, *models), tuple(name for name in family.tokenizers if name not in lacking)


def component_class(index: Mapping[str, Any], name: str, where: str) -> str:
    """The class of a component by its current name. Raises UserError if it is missing or not supported."""
    kind = _named(index, name)
    if kind is None:
        raise UserError(f"the model_index.json of {where} does not name a {name}; download or save the pipeline again.")
    family = family_in(index)
    denoiser = {family.denoiser: family.denoiser_classes}
    allowed = {**denoiser, **family.models, **family.tokenizers}.get(name, (kind,))
    if kind not in allowed:
        raise UserError(f"the {name} of {where} is a {kind}; supported are {' and '.join(allowed)}.")
    return kind


def _named(index: Mapping[str, Any], name: str) -> str | None:
    entry = index.get(name)
    kind = entry[1] if isinstance(entry, list | tuple) and len(entry) == 2 else None
    return None if kind is None else _RENAMED.get(str(kind), str(kind))


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """The configuration of a component. Raises UserError if its file is missing or broken."""
    file = "scheduler_config.json" if name == "scheduler" else "config.json"
    return read_json(folder / name / file)


@contextlib.contextmanager
def usable_values(folder: str | Path) -> Iterator[None]:
    """Turn the error of a calculation with the values of configuration files into a UserError.

    The files come from others, and a number may be a list, negative or missing, or in objects nested too deeply.
    """
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise UserError(
            f"a configuration file of {folder} contains a value that cannot be used ({one_line(error)}); download or "
            f"save the pipeline again."
        ) from error


def check_layout(folder: Path, generator: GeneratorRecipe, weights: bool = True, checkpoint: bool = False) -> None:
    """Raise UserError for the first problem that would prevent this pipeline from generating the images of the recipe.

    `weights` is whether the folder must contain weights; those of a hub model are downloaded later. With `checkpoint`,
    the weights of the denoiser are in another file.
    """
    with usable_values(folder):
        _check_layout(folder, generator, weights, checkpoint)


def _check_layout(folder: Path, generator: GeneratorRecipe, weights: bool, checkpoint: bool) -> None:
    index = read_index(folder)
    family = family_in(index)
    models, tokenizers = component_names(index)
    for name in models:
        component_class(index, name, str(folder))
        config, elsewhere = read_config(folder, name), checkpoint and name == family.denoiser
        check_sizes(config, name, folder)
        if "quantization_config" in config and not elsewhere:
            raise UserError(
                f"the {name} of {folder} is stored with quantised weights, which are not supported; give the original "
                f"model, with generator.quantize or engine.offload on a small GPU."
            )
        if weights and not elsewhere:
            weights_variant(folder / name)
            check_weights(config, name, folder)
    for name in tokenizers:
        component_class(index, name, str(folder))
        if not any((folder / name / file).is_file() for file in _TOKENIZER_FILES):
            raise UserError(
                f"{folder / name} is not a tokenizer: there is neither {' nor '.join(_TOKENIZER_FILES)}; download or "
                f"save the pipeline again."
            )
    denoiser, vae = read_config(folder, family.denoiser), read_config(folder, "vae")
    if family.is_unet:
        _check_shapes(folder, index, denoiser, vae)
    _check_size(folder, family, generator, denoiser, vae)
    _check_guidance(folder, family, generator, family.guided_by_input(str(index["_class_name"]), denoiser))
    kind = component_class(index, "scheduler", str(folder))
    scheduler = read_config(folder, "scheduler")
    check_sizes(scheduler, "scheduler", folder)
    check_scheduler(kind, scheduler, denoiser, family, generator, str(folder))


def weights_variant(folder: Path) -> str | None:
    """The weight variant of a component to load: None for the plain files, or one such as "fp16" if only that exists.

    Raises UserError if there are no weights.
    """
    names = {path.name for path in folder.glob("*")} if folder.is_dir() else set()
    plain = {f"{stem}{end}" for stem in _STEMS for end in (".safetensors", ".bin")}
    plain |= {f"{name}.index.json" for name in plain}
    if names & plain:
        return None
    variants = {name.split(".")[1] for name in names if _is_variant(name)}
    variants |= {name.split(".")[-2] for name in names if ".index." in name and name.endswith(".json")}
    variants = {name.split("-")[0] for name in variants}
    for variant in (*VARIANTS, *sorted(variants)):
        if variant in variants:
            return variant
    raise UserError(
        f"{folder} holds no weights: there is none of {', '.join(sorted(plain)[:4])} or their variants; download or "
        f"save the pipeline again."
    )


def pixels_per_latent(vae: Mapping[str, Any]) -> int:
    """Pixels per latent along each side, from the autoencoder's configuration."""
    if "temperal_downsample" in vae:  # as the autoencoder of Qwen-Image spells it
        return int(2 ** len(vae["temperal_downsample"]))
    blocks = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or (64,)
    return int(2 ** (len(blocks) - 1))


def default_size(family: Family, denoiser: Mapping[str, Any], factor: int) -> tuple[int, int] | None:
    """(height, width) in pixels of a model's images where the recipe gives none; None if its configuration has none.

    `factor` is the number of pixels per latent along each side.
    """
    if family.size is not None:
        side = family.size // factor * factor
        return side, side
    native = denoiser.get("sample_size")
    if not native:
        return None
    height, width = (native, native) if isinstance(native, int) else native
    return int(height) * factor, int(width) * factor


def blocks_of(family: Family, denoiser: Mapping[str, Any]) -> int:
    """The number of a transformer's blocks, from its configuration."""
    single = int(denoiser.get("num_single_layers", 0)) if len(family.blocks) > 1 else 0
    return int(denoiser.get("num_layers") or denoiser.get("n_layers") or 0) + single


def attention_levels(unet: Mapping[str, Any]) -> set[int]:
    """The reductions at which a U-Net has cross-attention, where the finest such level is 1."""
    default = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    with_attention = [k for k, kind in enumerate(unet.get("down_block_types") or default) if "CrossAttn" in str(kind)]
    return {2 ** (level - with_attention[0]) for level in with_attention}


def _is_variant(name: str) -> bool:
    parts = name.split(".")
    return len(parts) == 3 and parts[0] in _STEMS and parts[2] in ("safetensors", "bin")


def _check_shapes(folder: Path, index: Mapping[str, Any], unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Check that the components fit together, which the first call of the U-Net requires."""
    inputs, outputs, latent = unet.get("in_channels", 4), unet.get("out_channels", 4), vae.get("latent_channels", 4)
    if not inputs == outputs == latent:
        raise UserError(
            f"the U-Net of {folder} has {inputs} input and {outputs} output channels, and its autoencoder's latents "
            f"have {latent}: all must be equal in a text-to-image model; inpainting and depth models are not supported."
        )
    models, _ = component_names(index)
    encoders = [read_config(folder, name) for name in models if name.startswith("text_encoder")]
    width = sum(int(encoder.get("hidden_size", 512)) for encoder in encoders)
    expected = unet.get("encoder_hid_dim") or unet.get("cross_attention_dim", 1280)
    if isinstance(expected, int) and expected != width:
        raise UserError(
            f"the U-Net of {folder} expects text embeddings of {expected} channels, but its text encoders give "
            f"{width}: they do not match; download or save the pipeline again."
        )
    xl, embedded = "text_encoder_2" in models, unet.get("addition_embed_type")
    if embedded != ("text_time" if xl else None) or unet.get("class_embed_type") is not None:
        raise UserError(
            f"the U-Net of {folder} has additional embeddings {embedded!r} and class embeddings "
            f"{unet.get('class_embed_type')!r}, which a {index['_class_name']} does not provide."
        )


def _check_size(
    folder: Path, family: Family, generator: GeneratorRecipe, denoiser: Mapping[str, Any], vae: Mapping[str, Any]
) -> None:
    latent_factor = pixels_per_latent(vae)
    factor = family.pixels_per_token(latent_factor, denoiser)
    wrong = [size for size in (generator.width, generator.height) if size is not None and size % factor]
    if wrong:
        unit = "latent" if family.is_unet else "image token"
        raise UserError(
            f"{folder} cannot generate images of {generator.width or 'default'} x {generator.height or 'default'}: "
            f"width and height must be multiples of {factor}, the pixels per {unit}."
        )
    if default_size(family, denoiser, latent_factor) is None and not (generator.width and generator.height):
        raise UserError(
            f"the U-Net of {folder} has no default size; set generator.width and generator.height in the recipe."
        )


def _check_guidance(folder: Path, family: Family, generator: GeneratorRecipe, guided_by_input: bool) -> None:
    """Check the negative prompt and the guidance schedule; `guided_by_input` as in `Family.guided_by_input`."""
    if generator.negative and (guided_by_input or not family.negative):
        raise UserError(
            f"{folder} takes no negative prompt, because it is sampled without classifier-free guidance; remove "
            f"generator.negative."
        )
    if generator.guidance_schedule != CONSTANT and (guided_by_input or not family.is_unet):
        raise UserError(
            f"{folder} is sampled with a constant guidance scale; `{generator.guidance_schedule}` is for Stable "
            f"Diffusion 1, 2 and XL with classifier-free guidance. Leave --guidance-schedule (in a recipe, "
            f"generator.guidance_schedule) out."
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a pipeline. Raises UserError if the file is missing or broken."""
    try:
        return read_json_object(path)
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}; download or save the pipeline again.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); download or save the pipeline again.") from error
