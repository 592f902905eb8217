"""Renders scenes: sprites on a background, with exact masks of their visible pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from factory.stickers.atlas import TRAIN_STYLES, Sprite, sprites_of
from factory.stickers.backgrounds import KIND_SHARES, random_background

MIN_VISIBLE = 0.6
"""Default of the minimum visible share of the pixels of every object."""
_SIDES_BY_COUNT = {1: (0.5, 0.88), 2: (0.4, 0.6), 3: (0.32, 0.48)}
"""Range of the cell side of an object as a share of the image side, by number of objects."""


@dataclass(frozen=True)
class Scene:
    """A rendered image with its ground truth.

    `image` is uint8 RGB (size, size, 3). `instance_map` is uint8 (size, size): 0 is background, k is the k-th of
    `class_names`. A pixel belongs to the topmost object that covers at least half of it.
    """

    image: NDArray[np.uint8]
    instance_map: NDArray[np.uint8]
    class_names: tuple[str, ...]

    def masks(self) -> NDArray[np.bool_]:
        """One mask per object, bool (objects, size, size), without overlaps."""
        return self.instance_map[None] == np.arange(1, len(self.class_names) + 1)[:, None, None]


@dataclass(frozen=True)
class _Layer:
    colour: NDArray[np.float32]
    alpha: NDArray[np.float32]


def render_scene(
    seed: int | Sequence[int],
    class_names: Sequence[str],
    size: int = 128,
    styles: tuple[str, ...] = TRAIN_STYLES,
    kind_shares: tuple[float, ...] = KIND_SHARES,
    min_visible: float = MIN_VISIBLE,
    variants: bool = False,
) -> Scene:
    """Render one to three objects. The same arguments always give the same pixels.

    `kind_shares` are the probabilities of a gradient, a texture, stripes and clutter as background. A placement that
    hides more than 1 - `min_visible` of the pixels of an object is drawn again. With `variants`, classes are not
    limited to their default drawings. Raises ValueError for another number of objects, and for a class or style without
    sprites.
    """
    if len(class_names) not in _SIDES_BY_COUNT:
        raise ValueError(f"a scene must have 1 to 3 objects, got {len(class_names)}")
    rng = _generator(seed)
    sprites = [_choose(rng, name, styles, variants) for name in class_names]
    canvas = random_background(rng, size, kind_shares).astype(np.float32)
    layers, instance_map = _place(rng, sprites, size, min_visible)
    for layer in layers:
        if rng.random() < 0.5:
            canvas *= 1 - _shadow(rng, layer.alpha, size)[..., None]
        alpha = layer.alpha[..., None]
        canvas += alpha * (layer.colour - canvas)
    image = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    return Scene(image, instance_map, tuple(class_names))


def random_class_names(rng: np.random.Generator, names: Sequence[str], max_objects: int = 3) -> tuple[str, ...]:
    """One to `max_objects` classes for a scene, usually distinct. Half of the scenes have one, few have three."""
    weights = np.array((0.5, 0.38, 0.12)[:max_objects])
    count = int(rng.choice(max_objects, p=weights / weights.sum())) + 1
    return tuple(names[int(k)] for k in rng.integers(0, len(names), count))


def _generator(seed: int | Sequence[int]) -> np.random.Generator:
    # Callers draw the classes with `default_rng(seed)`. With the same random numbers here, the background would depend
    # on the number of objects.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(1,))))


def _choose(rng: np.random.Generator, class_name: str, styles: tuple[str, ...], variants: bool) -> Sprite:
    sprites = sprites_of(class_name, styles, variants)
    if not sprites:
        raise ValueError(f"there is no sprite of {class_name!r} in {', '.join(styles)}")
    return sprites[int(rng.integers(len(sprites)))]


def _place(
    rng: np.random.Generator, sprites: list[Sprite], size: int, min_visible: float
) -> tuple[list[_Layer], NDArray[np.uint8]]:
    """Draw placements until every sprite is visible enough. Sprites shrink with every attempt, so this terminates."""
    shrink = 1.0
    while True:
        layers = [_layer(rng, sprite, size, len(sprites), shrink) for sprite in sprites]
        covered = [layer.alpha >= 0.5 for layer in layers]
        instance_map = np.zeros((size, size), np.uint8)
        for position, mask in enumerate(covered, 1):
            instance_map[mask] = position
        visible = np.bincount(instance_map.ravel(), minlength=len(layers) + 1)[1:]
        areas = np.array([mask.sum() for mask in covered])
        if (visible >= np.maximum(min_visible * areas, 12)).all():
            return layers, instance_map
        shrink = max(0.6, shrink * 0.97)


def _layer(rng: np.random.Generator, sprite: Sprite, size: int, count: int, shrink: float) -> _Layer:
    """One sprite with random position, size, rotation and colour gain; float32 colours 0..255, alpha 0..1."""
    low, high = _SIDES_BY_COUNT[count]
    side = rng.uniform(low, high) * size * shrink
    angle = math.radians(float(np.clip(rng.normal(0, 9), -25, 25)))
    margin = side * 0.42
    x, y = rng.uniform(margin, size - margin, 2)
    mip = sprite.for_side(side)
    scale = mip.width / side
    flip = -1.0 if rng.random() < 0.5 else 1.0
    cos, sin, centre = math.cos(angle) * scale, math.sin(angle) * scale, mip.width / 2
    matrix = (flip * cos, flip * sin, centre - flip * (cos * x + sin * y), -sin, cos, centre + sin * x - cos * y)
    transformed = mip.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    pixels = np.asarray(transformed).astype(np.float32)
    gain = (rng.uniform(0.82, 1.15) * rng.uniform(0.93, 1.07, 3)).astype(np.float32)
    return _Layer(np.minimum(pixels[..., :3] * gain, 255), pixels[..., 3] / np.float32(255))


def _shadow(rng: np.random.Generator, alpha: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """How much the soft shadow of `alpha` darkens each pixel, 0..0.5."""
    dx, dy = rng.uniform(0.01, 0.05, 2) * size
    strength = np.float32(rng.uniform(0.15, 0.5) / 255)
    silhouette = Image.fromarray((alpha * 255).astype(np.uint8))
    small = silhouette.resize((size // 2, size // 2)).filter(ImageFilter.BoxBlur(size / 64))
    offset = (0.5, 0, -dx / 2, 0, 0.5, -dy / 2)
    shifted = small.transform((size, size), Image.Transform.AFFINE, offset, Image.Resampling.BILINEAR)
    return np.asarray(shifted).astype(np.float32) * strength
