"""This project's grounding module: one head for all classes, guided by each class's own cross-attention."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from factory.generator.interface import CROSS_ATTENTION, FEATURES, Captured
from factory.grounder.modules.backbone import Backbone, level_of, resized

_GROUPS = 8


@dataclass(frozen=True)
class GuidedOptions:
    """Widths, and inputs that the table of ablations leaves out one at a time.

    `learnt_maps` adds learned mixtures of the attention maps to their mean. `others` adds the maps of the other classes
    of the prompt, `picture` the image at four times the resolution of the attention, and `features` the block outputs.
    """

    width: int = 96
    map_width: int = 16
    head_width: int = 64
    learnt_maps: bool = True
    others: bool = True
    picture: bool = True
    features: bool = True


class GuidedModule(nn.Module):
    """Predicts a class's mask from fused features, the class's attention maps and those of the other classes.

    The head is class-agnostic and reads no text embedding, so it handles unseen classes like seen ones, as long as the
    denoiser's attention locates them.
    """

    needs = frozenset({FEATURES, CROSS_ATTENTION})

    def __init__(self, backbone: Backbone, options: GuidedOptions | None = None) -> None:
        super().__init__()
        self.options = options = options or GuidedOptions()
        self.levels, self.layers, self.side = backbone.levels(), tuple(backbone.layers), backbone.side
        width, inner = options.width, options.head_width
        half = width // 2
        if options.features:
            self.reduce = nn.ModuleList(
                nn.Sequential(nn.GroupNorm(1, backbone.channels(level)), nn.Conv2d(backbone.channels(level), half, 1))
                for level in self.levels
            )
            self.fuse = nn.Sequential(_convolution(half * len(self.levels), width), _convolution(width, width))
        maps = sum(backbone.layers.values())
        # No bias: the maps of padding classes must stay 0, because the sum over classes enters the others' maps.
        self.weigh = nn.Conv2d(maps, options.map_width, 1, bias=False) if options.learnt_maps else None
        per_class = 1 + (options.map_width if options.learnt_maps else 0)
        inputs = per_class * (2 if options.others else 1) + (width if options.features else 0)
        self.first = _convolution(inputs, inner)
        self.second = _convolution(inner, inner)
        pixel_width = inner // 4
        self.look: nn.Module | None = None
        if options.picture:
            self.look = nn.Sequential(_convolution(3, pixel_width), _convolution(pixel_width, pixel_width))
        self.third = _convolution(inner + (pixel_width if options.picture else 0), inner // 2)
        self.last = nn.Conv2d(inner // 2, 1, 1)

    def forward(self, captured: Captured, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) in the size of `images`, float (B, 3, H, W) in -1..1."""
        maps = self._maps(captured)
        batch, classes = maps.shape[:2]
        size = (maps.shape[-2], maps.shape[-1])
        features = self._features(captured, size) if self.options.features else None
        inputs = [maps.flatten(0, 1)]
        if self.options.others:
            inputs.append(_others(maps).flatten(0, 1))
        if features is not None:
            inputs.append(_per_class(features, classes))
        # In channels-last layout the upsampling below is several times faster on CPUs.
        head = self.first(torch.cat(inputs, 1).contiguous(memory_format=torch.channels_last))
        head = self.second(_twice(head))
        head = _twice(head)
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
        learnt = self.weigh(by_class.flatten(0, 1))
        return torch.cat([mean, learnt.reshape(*by_class.shape[:2], *learnt.shape[1:])], 2)


def _others(maps: Tensor) -> Tensor:
    """The sum of the other classes' maps for each class, (B, K, C, h, w)."""
    return maps.sum(1, keepdim=True) - maps


def _per_class(maps: Tensor, classes: int) -> Tensor:
    """Repeat (B, C, h, w) for each class: (B * K, C, h, w)."""
    return maps[:, None].expand(-1, classes, -1, -1, -1).flatten(0, 1)


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    groups = _GROUPS if outputs % _GROUPS == 0 else 1
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(groups, outputs), nn.SiLU())


def _twice(maps: Tensor) -> Tensor:
    return functional.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
