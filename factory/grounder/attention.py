"""Masks without training: where the U-Net looked for the words of each class (as DAAM reads it)."""

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
_SPREAD = 2
"""How often attention is passed on to the places that the U-Net's self-attention takes for the same thing."""


class AttentionGrounder:
    """One mask per class of the prompt.

    A class's heat is the mean attention to its own tokens over all layers, brought to one size, passed along the
    U-Net's self-attention, and stretched to 0..1. Each pixel goes to the class with the highest heat, if that is over
    the class's threshold; below it, it is background. The threshold is the recipe's, or found in each image: the one
    that best parts the heat into two groups (Otsu's).
    """

    needs = frozenset({ATTENTION})

    def __init__(self, recipe: MaskRecipe) -> None:
        self._threshold, self._levels = recipe.threshold, recipe.levels

    def ground(self, generated: Sequence[Generated], prompts: Sequence[Prompt]) -> list[Grounded]:
        """Masks of the images' size; a class's score is how much of its heat lies inside, against chance."""
        return [self._ground(one, prompt) for one, prompt in zip(generated, prompts, strict=True)]

    def _ground(self, generated: Generated, prompt: Prompt) -> Grounded:
        assert generated.attention is not None, "the generator was not told to capture attention"
        shape = (generated.image.shape[0], generated.image.shape[1])
        heats = np.stack(
            [_resized(_stretched(heat), shape) for heat in class_heats(generated.attention, prompt, self._levels)]
        )
        thresholds = [self._threshold or otsu(heat) for heat in heats]
        winner = heats.argmax(0)
        instances = []
        for place, name in enumerate(prompt.classes):
            mask = (winner == place) & (heats[place] > thresholds[place])
            if mask.any():
                instances.append(Instance(name, _confidence(heats[place], mask), mask))
        return Grounded(tuple(instances))


def class_heats(attention: Attention, prompt: Prompt, levels: tuple[int, ...] | None = None) -> list[Heat]:
    """The unstretched heat of each class at the finest level's size; UserError for levels that the model has not."""
    finest = max(attention.cross, key=lambda shape: shape[0] * shape[1])
    chosen = [shape for shape in attention.cross if levels is None or round(finest[0] / shape[0]) in levels]
    if not chosen:
        have = sorted(round(finest[0] / shape[0]) for shape in attention.cross)
        raise UserError(f"masks.levels {levels} are not among this model's levels with cross-attention, {have}.")
    layers = sum(attention.layers[shape] for shape in chosen)
    heats = []
    for place in range(len(prompt.classes)):
        total = np.zeros(finest, np.float32)
        for shape in chosen:
            total += _resized(attention.cross[shape][place], finest) * np.float32(attention.layers[shape] / layers)
        heats.append(_spread(total, attention))
        if not np.isfinite(heats[-1]).all():
            raise UserError(
                f"the text-to-image model's attention to {prompt.classes[place]} is NaN; its weights are broken or "
                f"overflow in half precision: set generator.dtype to float32."
            )
    return heats


def otsu(heat: Heat) -> float:
    """The threshold between two groups of values, 0..1, whose variance within is least."""
    counts, edges = np.histogram(heat, bins=_BINS, range=(0, 1))
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * middles)
    parted = (below > 0) & (above > 0)
    if not parted.any():
        return 1.0
    between = np.zeros(_BINS - 1)
    low, high = sums[:-1][parted] / below[parted], (sums[-1] - sums[:-1][parted]) / above[parted]
    between[parted] = below[parted] * above[parted] * (high - low) ** 2
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float(edges[1:-1][best].mean())


def _spread(heat: Heat, attention: Attention) -> Heat:
    if attention.self_attention is None or attention.self_attention_shape is None:
        return heat
    flat = _resized(heat, attention.self_attention_shape).ravel()
    for _ in range(_SPREAD):
        flat = attention.self_attention @ flat
    return flat.reshape(attention.self_attention_shape)


def _stretched(heat: Heat) -> Heat:
    low, high = heat.min(), heat.max()
    return (heat - low) / (high - low) if high > low else np.zeros_like(heat)


def _resized(heat: Heat, shape: tuple[int, int]) -> Heat:
    if heat.shape == shape:
        return heat
    picture = Pictures.fromarray(np.ascontiguousarray(heat, dtype=np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Pictures.Resampling.BICUBIC), dtype=np.float32)


def _confidence(heat: Heat, mask: NDArray[np.bool_]) -> float:
    """Mean heat inside less mean heat outside, 0..1."""
    outside = heat[~mask].mean() if not mask.all() else 0.0
    return float(np.clip(heat[mask].mean() - outside, 0, 1))
