"""Bounds of the numbers in a model's configuration, which determine how much memory is allocated when it is loaded.

Model folders may come from others. The bounds are far above those of published models; a configuration that stays
within them is compared with the number of parameters in the weights.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from factory.errors import UserError, one_line

_SIZES = (
    "attention_head_dim", "base_dim", "block_out_channels", "caption_channels", "cross_attention_dim", "d_ff", "d_kv",
    "d_model", "decoder_block_out_channels", "dim", "dim_mult", "encoder_block_out_channels", "encoder_hid_dim",
    "head_dim", "hidden_size", "in_channels", "intermediate_size", "joint_attention_dim", "latent_channels",
    "max_position_embeddings", "n_heads", "norm_num_groups", "num_attention_heads", "num_heads",
    "num_key_value_heads", "out_channels", "pooled_projection_dim", "vocab_size", "z_dim",
)  # fmt: skip
_LAYERS = (
    "depth", "layers_per_block", "n_layers", "num_decoder_blocks", "num_encoder_blocks", "num_hidden_layers",
    "num_layers", "num_res_blocks",
)  # fmt: skip
_OPTIONAL_LAYERS = (
    "decoder_layers_per_block", "encoder_layers_per_block", "n_refiner_layers", "num_decoder_layers",
    "num_single_layers", "transformer_layers_per_block",
)  # fmt: skip
_BOUNDS = {
    **dict.fromkeys(_SIZES, (1, 2**20)),
    **dict.fromkeys(_LAYERS, (1, 1000)),
    **dict.fromkeys(_OPTIONAL_LAYERS, (0, 1000)),
    "sample_size": (1, 8192),
    "num_train_timesteps": (1, 100_000),
}


def check_sizes(config: Mapping[str, Any], name: str, folder: Path) -> None:
    """Raise UserError if a size or a number of layers in the configuration of a component is out of bounds."""
    for key, value in config.items():
        if isinstance(value, dict):  # such as `text_config` of a model of several parts
            check_sizes(value, name, folder)
        low, high = _BOUNDS.get(key, (-math.inf, math.inf))
        for number in _numbers(value):
            if not low <= number <= high:
                raise UserError(
                    f"the configuration of the {name} of {folder} contains {key} {str(number)[:40]}; allowed are {low} "
                    f"to {high}. Download or save the pipeline again."
                )


def check_weights(config: Mapping[str, Any], name: str, folder: Path) -> None:
    """Raise UserError if a file of weights is incomplete, or if the configuration describes a much larger model."""
    stored, described = _stored_parameters(folder / name), _least_parameters(config)
    if described > stored:
        raise UserError(
            f"the configuration of the {name} of {folder} describes a model of at least {described:,} parameters, but "
            f"its weights have only {stored:,}: they do not match, or a file is missing. Download or save the pipeline "
            f"again."
        )


def _stored_parameters(folder: Path) -> int:
    """The number of parameters in the weights of a component, or more: files of several precisions are all counted.

    Hidden files are not: macOS adds ._NAME to every file that it copies to another file system. Raises UserError for an
    incomplete download: the header of a safetensors file says how long it is.
    """
    from safetensors import SafetensorError, safe_open

    # A parameter takes at least one byte of the other formats, whose shapes cannot be read without unpickling them.
    total = sum(path.stat().st_size for path in folder.glob("[!.]*.bin"))
    for path in sorted(folder.glob("[!.]*.safetensors")):
        try:
            with safe_open(path, framework="pt") as tensors:
                total += sum(math.prod(tensors.get_slice(key).get_shape()) for key in sorted(tensors.keys()))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is incomplete or damaged ({one_line(error)}); download it again.") from error
    return total


def _least_parameters(config: Mapping[str, Any]) -> int:
    """A lower limit of the parameters that a configuration describes, from its largest layers."""
    text = config.get("text_config")
    if isinstance(text, dict):
        config = {**config, **text}
    return int(_of_convolutions(config) + _of_text_encoder(config) + _of_transformer(config))


def _of_convolutions(config: Mapping[str, Any]) -> float:
    """U-Nets and autoencoders: each residual block has a convolution of 3 x 3 that keeps the number of channels.

    Each transformer block of a U-Net multiplies the channels by more than eight square matrices.
    """
    total = 0.0
    kinds = config.get("down_block_types") or ()
    for prefix in ("", "encoder_", "decoder_"):
        widths = list(_numbers(config.get(f"{prefix}block_out_channels")))
        layers = _per_level(config.get(f"{prefix}layers_per_block", 1), len(widths))
        transformers = _per_level(config.get("transformer_layers_per_block", 1), len(widths))
        for level, (width, blocks, depth) in enumerate(zip(widths, layers, transformers, strict=False)):
            has_attention = level < len(kinds) and "CrossAttn" in str(kinds[level])
            total += width**2 * blocks * (9 + 8 * depth * has_attention)
    if config.get("base_dim"):
        total += 9 * (config["base_dim"] * max(_numbers(config.get("dim_mult")), default=1)) ** 2
    return total


def _of_text_encoder(config: Mapping[str, Any]) -> float:
    """The table of embeddings, and two matrices of the feed-forward network of each layer."""
    width = config.get("hidden_size") or config.get("d_model") or 0
    inner = config.get("intermediate_size") or config.get("d_ff") or 0
    layers = config.get("num_hidden_layers") or config.get("num_layers") or 0
    return float((config.get("vocab_size") or 0) * width + 2 * layers * width * inner)


def _of_transformer(config: Mapping[str, Any]) -> float:
    """Transformers of images: two square matrices of the attention of each layer."""
    if "hidden_size" in config or "d_model" in config or "block_out_channels" in config:
        return 0.0
    heads, size = config.get("num_attention_heads"), config.get("attention_head_dim")
    width = heads * size if heads and size else config.get("dim") or 0
    layers = config.get("num_layers") or config.get("n_layers") or 0
    return float(2 * (layers + (config.get("num_single_layers") or 0)) * width**2)


def _per_level(value: Any, levels: int) -> list[float]:
    """A number per level; of nested lists, which give one for each block of a level, none is known."""
    if isinstance(value, list):
        return [number if isinstance(number, int) else 0 for number in value]
    return [value] * levels


def _numbers(value: Any) -> Iterator[float]:
    """The numbers of a value: itself, or those of nested lists."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
