"""The project's grounding module: one head for all classes, told where to look by the class's own cross-attention."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from factory.generator.interface import CROSS_ATTENTION, FEATURES, Captured
from factory.grounder.modules.backbone import Backbone, resized

_GROUPS = 8


@dataclass(frozen=True)
class GuidedOptions:
    """Widths, and the ingredients that can be left out: each has its row in the table of ablations.

    `learnt_maps` weighs layers and heads; without it their mean is taken. `others` shows the head where the prompt's
    other classes are. `picture` shows it the image itself at four times the latents' resolution. `features` shows it
    the U-Net's block outputs.
    """

    width: int = 96
    map_width: int = 16
    head_width: int = 64
    learnt_maps: bool = True
    others: bool = True
    picture: bool = True
    features: bool = True


class GuidedModule(nn.Module):
    """Fused features, the class's attention maps and those of the others, through a class-agnostic head.

    No text embedding is read, so a class that was never trained on is as good as one that was, as far as the U-Net
    knows where it drew it.
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
        # Without a bias: a place in the batch that no class takes must stay 0, for the others see its sum.
        self.weigh = nn.Conv2d(maps, options.map_width, 1, bias=False) if options.learnt_maps else None
        shown = 1 + (options.map_width if options.learnt_maps else 0)
        given = shown * (2 if options.others else 1) + (width if options.features else 0)
        self.first = _convolution(given, inner)
        self.second = _convolution(inner, inner)
        drawn = inner // 4
        self.look = nn.Sequential(_convolution(3, drawn), _convolution(drawn, drawn)) if options.picture else None
        self.third = _convolution(inner + (drawn if options.picture else 0), inner // 2)
        self.last = nn.Conv2d(inner // 2, 1, 1)

    def forward(self, captured: Captured, pictures: Tensor) -> Tensor:
        """Logits (B, K, H, W) in the size of `pictures`, float (B, 3, H, W) in -1..1."""
        maps = self._maps(captured)
        batch, classes = maps.shape[:2]
        size = (maps.shape[-2], maps.shape[-1])
        features = self._features(captured, size) if self.options.features else None
        shown = [maps.flatten(0, 1)]
        if self.options.others:
            shown.append(_others(maps).flatten(0, 1))
        if features is not None:
            shown.append(_per_class(features, classes))
        # Neighbouring channels make the enlarging below several times faster on CPUs.
        head = self.first(torch.cat(shown, 1).contiguous(memory_format=torch.channels_last))
        head = self.second(_twice(head))
        head = _twice(head)
        if self.look is not None:
            near = functional.interpolate(pictures, head.shape[-2:], mode="area")
            head = torch.cat([head, _per_class(self.look(near), classes)], 1)
        logits = self.last(self.third(head))
        logits = logits.reshape(batch, classes, *logits.shape[-2:])
        return resized(logits, (pictures.shape[-2], pictures.shape[-1]))

    def _features(self, captured: Captured, size: tuple[int, int]) -> Tensor:
        """All blocks as one map (B, width, h, w)."""
        levels = [
            resized(reduce(torch.cat([captured.features[name] for name in names], 1)), size)
            for names, reduce in zip(self.levels.values(), self.reduce, strict=True)
        ]
        fused: Tensor = self.fuse(torch.cat(levels, 1))
        return fused

    def _maps(self, captured: Captured) -> Tensor:
        """What is shown of each class's attention, (B, K, C, h, w): the mean of its maps, and learnt mixtures.

        Each map is divided by its maximum first: a name's attention differs in strength from layer to layer.
        """
        rows = [captured.cross_attention[name] for name in self.layers]
        size = max(((row.shape[-2], row.shape[-1]) for row in rows), key=lambda shape: shape[0] * shape[1])
        heads = torch.cat([resized(row.flatten(0, 1), size).reshape(*row.shape[:3], *size) for row in rows], 1)
        heads = heads / heads.amax((-2, -1), keepdim=True).clamp_min(1e-6)
        by_class = heads.transpose(1, 2)
        mean = by_class.mean(2, keepdim=True)
        if self.weigh is None:
            return mean
        learnt = self.weigh(by_class.flatten(0, 1))
        return torch.cat([mean, learnt.reshape(*by_class.shape[:2], *learnt.shape[1:])], 2)


def _others(maps: Tensor) -> Tensor:
    """For each class the sum of the other classes' maps, (B, K, C, h, w)."""
    return maps.sum(1, keepdim=True) - maps


def _per_class(maps: Tensor, classes: int) -> Tensor:
    """(B, C, h, w) once for each class: (B * K, C, h, w)."""
    return maps[:, None].expand(-1, classes, -1, -1, -1).flatten(0, 1)


def _convolution(given: int, made: int) -> nn.Sequential:
    groups = _GROUPS if made % _GROUPS == 0 else 1
    return nn.Sequential(nn.Conv2d(given, made, 3, padding=1), nn.GroupNorm(groups, made), nn.SiLU())


def _twice(maps: Tensor) -> Tensor:
    return functional.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
