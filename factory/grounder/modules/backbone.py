"""The shapes of the features and attention that a grounding module reads, and access to them by level."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from factory.generator.interface import Captured


@dataclass(frozen=True)
class Backbone:
    """Shapes of a denoiser's features and attention.

    `blocks` maps each block's name to (channels, reduction), where a reduction of 1 is the finest level; `layers` maps
    each cross-attention layer to its number of heads. `class_channels` is the number of channels of a class embedding,
    0 if none was read; `side` is the longer side of the finest level. The features of a `transformer` are not
    normalised: a few channels are far larger than the others.
    """

    blocks: Mapping[str, tuple[int, int]]
    layers: Mapping[str, int]
    class_channels: int
    side: int
    transformer: bool = False

    @classmethod
    def of(cls, captured: Captured, transformer: bool = False) -> "Backbone":
        """The shapes of captured features and attention."""
        side = max(max(block.shape[-2:]) for block in captured.features.values())
        return cls(
            blocks={
                name: (int(block.shape[1]), round(side / max(block.shape[-2:])))
                for name, block in captured.features.items()
            },
            layers={name: int(maps.shape[1]) for name, maps in captured.cross_attention.items()},
            class_channels=0 if captured.class_embeddings is None else int(captured.class_embeddings.shape[-1]),
            side=side,
            transformer=transformer,
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Backbone":
        """The reverse of `to_dict`."""
        blocks = {name: (int(channels), int(reduction)) for name, (channels, reduction) in data["blocks"].items()}
        return cls(
            blocks, dict(data["layers"]), int(data["words"]), int(data["side"]), bool(data.get("transformer", False))
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `config.json` of a grounder's folder holds it; `class_channels` is called `words` there."""
        return {
            "blocks": {name: list(shape) for name, shape in self.blocks.items()},
            "layers": dict(self.layers),
            "words": self.class_channels,
            "side": self.side,
            **({"transformer": True} if self.transformer else {}),
        }

    def levels(self) -> dict[int, list[str]]:
        """Names of blocks by reduction, from the coarsest level to the finest."""
        reductions = sorted({reduction for _, reduction in self.blocks.values()}, reverse=True)
        return {
            level: [name for name, (_, reduction) in self.blocks.items() if reduction == level] for level in reductions
        }

    def channels(self, level: int) -> int:
        """Total channels of a level's blocks."""
        return sum(channels for channels, reduction in self.blocks.values() if reduction == level)


def level_of(captured: Captured, names: Sequence[str]) -> Tensor:
    """The concatenated features of a level's blocks, float32 (B, C, h, w)."""
    return torch.cat([captured.features[name].float() for name in names], 1)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, h, w) bilinearly."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)
