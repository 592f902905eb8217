"""Masks without training, from the cross-attention to the tokens of each class, as in DAAM (Tang et al., ACL 2023)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures

from factory.config.prompts import Prompt
from factory.config.sections import MaskRecipe
from factory.dataset.records import Grounded, Instance
from factory.errors import UserError
from factory.generator.interface import ATTENTION, Attention, Generated

Heat = NDArray[np.float32]
"""float32 (height, width)."""

_BINS = 256
_PROPAGATIONS = 2
"""Number of times that the heat is propagated along self-attention, to positions that belong together."""


class AttentionGrounder:
    """One mask per class of the prompt.

    The heat of a class is the mean attention to its tokens over all layers, resized to one level, propagated along
    self-attention, and scaled to 0..1. Each pixel is assigned to the class with the highest heat if that exceeds the
    threshold of the class, and to the background otherwise. The threshold is that of the recipe, or computed for each
    image with Otsu's method.
    """

    needs = frozenset({ATTENTION})

    def __init__(self, recipe: MaskRecipe) -> None:
        self._threshold, self._levels = recipe.threshold, recipe.levels

    def ground(self, generated: Sequence[Generated], prompts: Sequence[Prompt]) -> list[Grounded]:
        """Masks in the size of the images. The score of a class is its mean heat inside the mask minus that outside."""
        return [self._ground(g, prompt) for g, prompt in zip(generated, prompts, strict=True)]

    def _ground(self, generated: Generated, prompt: Prompt) -> Grounded:
        assert generated.attention is not None, "the generator did not capture attention"
        shape = (generated.image.shape[0], generated.image.shape[1])
        heats = np.stack(
            [_resized(_scaled(heat), shape) for heat in class_heats(generated.attention, prompt, self._levels)]
        )
        thresholds = [self._threshold or otsu(heat) for heat in heats]
        winner = heats.argmax(0)
        instances = []
        for k, name in enumerate(prompt.classes):
            mask = (winner == k) & (heats[k] > thresholds[k])
            if mask.any():
                instances.append(Instance(name, _confidence(heats[k], mask), mask))
        return Grounded(tuple(instances))


def class_heats(attention: Attention, prompt: Prompt, levels: tuple[int, ...] | None = None) -> list[Heat]:
    """The unscaled heat of each class, in the size of the finest level. UserError if the model lacks the levels."""
    finest = max(attention.cross, key=lambda shape: shape[0] * shape[1])
    chosen = [shape for shape in attention.cross if levels is None or round(finest[0] / shape[0]) in levels]
    if not chosen:
        existing = sorted(round(finest[0] / shape[0]) for shape in attention.cross)
        raise UserError(f"masks.levels {levels} are not among this model's levels with cross-attention, {existing}.")
    layers = sum(attention.layers[shape] for shape in chosen)
    heats = []
    for k, name in enumerate(prompt.classes):
        total = np.zeros(finest, np.float32)
        for shape in chosen:
            total += _resized(attention.cross[shape][k], finest) * np.float32(attention.layers[shape] / layers)
        heats.append(_propagated(total, attention))
        if not np.isfinite(heats[-1]).all():
            raise UserError(
                f"the text-to-image model's attention to {name} is NaN: its weights are broken or overflow in half "
                f"precision; set generator.dtype to float32."
            )
    return heats


def otsu(heat: Heat) -> float:
    """The threshold of Otsu's method, which splits values in 0..1 into two groups with minimal variance within."""
    counts, edges = np.histogram(heat, bins=_BINS, range=(0, 1))
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * middles)
    splits = (below > 0) & (above > 0)
    if not splits.any():
        return 1.0
    between = np.zeros(_BINS - 1)
    low, high = sums[:-1][splits] / below[splits], (sums[-1] - sums[:-1][splits]) / above[splits]
    # The variance within the groups is minimal where that between them is maximal. Empty bins between the groups tie;
    # the threshold is in their middle.
    between[splits] = below[splits] * above[splits] * (high - low) ** 2
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float(edges[1:-1][best].mean())


def _propagated(heat: Heat, attention: Attention) -> Heat:
    if attention.self_attention is None or attention.self_attention_shape is None:
        return heat
    flat = _resized(heat, attention.self_attention_shape).ravel()
    for _ in range(_PROPAGATIONS):
        flat = attention.self_attention @ flat
    return flat.reshape(attention.self_attention_shape)


def _scaled(heat: Heat) -> Heat:
    low, high = heat.min(), heat.max()
    return (heat - low) / (high - low) if high > low else np.zeros_like(heat)


def _resized(heat: Heat, shape: tuple[int, int]) -> Heat:
    if heat.shape == shape:
        return heat
    image = Pictures.fromarray(np.ascontiguousarray(heat, dtype=np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Pictures.Resampling.BICUBIC), dtype=np.float32)


def _confidence(heat: Heat, mask: NDArray[np.bool_]) -> float:
    """Mean heat inside minus mean heat outside, 0..1."""
    outside = heat[~mask].mean() if not mask.all() else 0.0
    return float(np.clip(heat[mask].mean() - outside, 0, 1))
