"""This project's grounding module: one head for all classes, guided by each class's own cross-attention."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from factory.generator.interface import CROSS_ATTENTION, FEATURES, Captured
from factory.grounder.modules.backbone import Backbone, level_of, resized

_GROUPS = 8
_STORED_NAMES = {
    "feature_channels": "width",
    "attention_channels": "map_width",
    "head_channels": "head_width",
    "attention_mixtures": "learnt_maps",
    "other_classes": "others",
    "image": "picture",
    "features": "features",
}
"""The name of each option in `config.json` and in checkpoints, which existing grounders have."""


@dataclass(frozen=True)
class GuidedOptions:
    """Channels of the parts of the network, and the inputs of the head, each of which benchmarks/ablations.py removes.

    The fused block outputs have `feature_channels`, the learned mixtures of the attention maps `attention_channels`,
    and the first layers of the head `head_channels`. The head always reads the mean of a class's attention maps.
    `attention_mixtures` adds learned mixtures of them, `other_classes` the maps of the prompt's other classes, `image`
    the image at four times the resolution of the attention, and `features` the fused block outputs.
    """

    feature_channels: int = 96
    attention_channels: int = 16
    head_channels: int = 64
    attention_mixtures: bool = True
    other_classes: bool = True
    image: bool = True
    features: bool = True

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "GuidedOptions":
        """The reverse of `to_dict`."""
        names = {stored: name for name, stored in _STORED_NAMES.items()}
        return cls(**{names.get(stored, stored): value for stored, value in data.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain data under the names of `config.json`."""
        return {_STORED_NAMES[name]: value for name, value in asdict(self).items()}


class GuidedModule(nn.Module):
    """Predicts a class's mask from fused features, the class's attention maps and those of the other classes.

    The head is class-agnostic and reads no text embedding, so it handles unseen classes like seen ones if the attention
    of the denoiser locates them.
    """

    needs = frozenset({FEATURES, CROSS_ATTENTION})

    def __init__(self, backbone: Backbone, options: GuidedOptions | None = None) -> None:
        super().__init__()
        self.options = options = options or GuidedOptions()
        self.levels, self.layers, self.side = backbone.levels(), tuple(backbone.layers), backbone.side
        width, hidden = options.feature_channels, options.head_channels
        half = width // 2
        if options.features:
            self.reduce = nn.ModuleList(
                nn.Sequential(nn.GroupNorm(1, backbone.channels(level)), nn.Conv2d(backbone.channels(level), half, 1))
                for level in self.levels
            )
            self.fuse = nn.Sequential(_convolution(half * len(self.levels), width), _convolution(width, width))
        maps = sum(backbone.layers.values())
        # No bias: the maps of padding classes must stay 0, because `_of_other_classes` sums over all classes.
        self.weigh = nn.Conv2d(maps, options.attention_channels, 1, bias=False) if options.attention_mixtures else None
        per_class = 1 + (options.attention_channels if options.attention_mixtures else 0)
        inputs = per_class * (2 if options.other_classes else 1) + (width if options.features else 0)
        self.first = _convolution(inputs, hidden)
        self.second = _convolution(hidden, hidden)
        image_channels = hidden // 4
        self.look: nn.Module | None = None
        if options.image:
            self.look = nn.Sequential(_convolution(3, image_channels), _convolution(image_channels, image_channels))
        self.third = _convolution(hidden + (image_channels if options.image else 0), hidden // 2)
        self.last = nn.Conv2d(hidden // 2, 1, 1)

    def forward(self, captured: Captured, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) in the size of `images`, float (B, 3, H, W) in -1..1."""
        maps = self._maps(captured)
        batch, classes = maps.shape[:2]
        size = (maps.shape[-2], maps.shape[-1])
        features = self._features(captured, size) if self.options.features else None
        inputs = [maps.flatten(0, 1)]
        if self.options.other_classes:
            inputs.append(_of_other_classes(maps).flatten(0, 1))
        if features is not None:
            inputs.append(_per_class(features, classes))
        # In the channels-last layout, the upsampling below is several times faster on CPUs.
        head = self.first(torch.cat(inputs, 1).contiguous(memory_format=torch.channels_last))
        head = self.second(_upsampled(head))
        head = _upsampled(head)
        if self.look is not None:
            resized_images = functional.interpolate(images, head.shape[-2:], mode="area")
            head = torch.cat([head, _per_class(self.look(resized_images), classes)], 1)
        logits = self.last(self.third(head))
        logits = logits.reshape(batch, classes, *logits.shape[-2:])
        return resized(logits, (images.shape[-2], images.shape[-1]))

    def _features(self, captured: Captured, size: tuple[int, int]) -> Tensor:
        """All blocks fused to one map (B, width, h, w)."""
        levels = [
            resized(reduce(level_of(captured, names)), size)
            for names, reduce in zip(self.levels.values(), self.reduce, strict=True)
        ]
        fused: Tensor = self.fuse(torch.cat(levels, 1))
        return fused

    def _maps(self, captured: Captured) -> Tensor:
        """Each class's attention, (B, K, C, h, w): the mean over layers and heads, and learned mixtures.

        Each map is first divided by its maximum, because the strength of attention differs between layers.
        """
        layers = [captured.cross_attention[name] for name in self.layers]
        size = max(((layer.shape[-2], layer.shape[-1]) for layer in layers), key=lambda shape: shape[0] * shape[1])
        heads = torch.cat([resized(m.flatten(0, 1), size).reshape(*m.shape[:3], *size) for m in layers], 1)
        heads = heads / heads.amax((-2, -1), keepdim=True).clamp_min(1e-6)
        by_class = heads.transpose(1, 2)
        mean = by_class.mean(2, keepdim=True)
        if self.weigh is None:
            return mean
        mixtures = self.weigh(by_class.flatten(0, 1))
        return torch.cat([mean, mixtures.reshape(*by_class.shape[:2], *mixtures.shape[1:])], 2)


def _of_other_classes(maps: Tensor) -> Tensor:
    """The sum of the other classes' maps for each class, (B, K, C, h, w)."""
    return maps.sum(1, keepdim=True) - maps


def _per_class(maps: Tensor, classes: int) -> Tensor:
    """Repeat (B, C, h, w) for each class: (B * K, C, h, w)."""
    return maps[:, None].expand(-1, classes, -1, -1, -1).flatten(0, 1)


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    groups = _GROUPS if outputs % _GROUPS == 0 else 1
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(groups, outputs), nn.SiLU())


def _upsampled(maps: Tensor) -> Tensor:
    """Twice the height and width."""
    return functional.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
