"""The layers of a denoiser that features and attention are read from, and their sizes."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from factory.generator.family import Family


def feature_layers(unet: Any) -> list[tuple[str, nn.Module]]:
    """conv_in and the layers of the blocks of a U-Net with their names: 25 in Stable Diffusion 1 and 2.

    As in Stable Diffusion's original code, the last layer of an up block is recorded after the block's upsampler.
    """
    input_blocks = [unet.conv_in]
    for block in unet.down_blocks:
        input_blocks += [*_layers(block), *(getattr(block, "downsamplers", None) or [])]
    output_blocks: list[nn.Module] = []
    for block in unet.up_blocks:
        layers, samplers = _layers(block), list(getattr(block, "upsamplers", None) or [])
        output_blocks += [*layers[: len(layers) - len(samplers)], *samplers]
    named = [(f"in.{number}", layer) for number, layer in enumerate(input_blocks)]
    if unet.mid_block is not None:  # some distilled U-Nets have none
        named.append(("mid", unet.mid_block))
    return named + [(f"out.{number}", layer) for number, layer in enumerate(output_blocks)]


def _layers(block: Any) -> list[nn.Module]:
    """The last module of each layer of a block: its transformer, or its residual block if it has none."""
    attentions = getattr(block, "attentions", None)
    return list(attentions if attentions else block.resnets)


def transformer_blocks(transformer: Any, family: Family) -> list[tuple[str, nn.Module]]:
    """The blocks of a transformer with their names, in the order in which they run."""
    return [
        (f"{name}.{number}", block) for name in family.blocks for number, block in enumerate(getattr(transformer, name))
    ]


def level_shape(positions: int, latents: Sequence[int]) -> tuple[int, int]:
    """(height, width) of the U-Net level with this many positions, for latents of (height, width).

    Each level is half as large as the previous one. Most U-Nets round odd sides up; those without padding round down.
    """
    for rounding in (1, 0):
        height, width = latents
        while height * width > positions:
            height, width = (height + rounding) // 2, (width + rounding) // 2
        if height * width == positions:
            return height, width
    raise ValueError(f"no level of a U-Net with latents of {latents[0]} x {latents[1]} has {positions} positions")
