"""Backgrounds of rendered scenes: gradients, textures, stripes, and clutter of shapes that are not classes."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.uint8]

KINDS = ("gradient", "texture", "stripes", "clutter")
KIND_SHARES = (0.35, 0.25, 0.2, 0.2)
"""Probabilities of the kinds."""
MODEL_KIND_SHARES = (0.8, 0.1, 0.05, 0.05)
"""Probabilities in the training scenes of the text-to-image model: mostly gradients.

With two styles and equally frequent backgrounds, shapes were still coarse after 230,000 samples."""


def kind_shares(name: str) -> tuple[float, ...]:
    """The probabilities of the kinds for "all", "model" or one kind, the choices of `factory stickers render`."""
    if name in KINDS:
        return tuple(float(name == kind) for kind in KINDS)
    return {"all": KIND_SHARES, "model": MODEL_KIND_SHARES}[name]


def random_background(rng: np.random.Generator, size: int, kind_shares: tuple[float, ...] = KIND_SHARES) -> Pixels:
    """A background of a random kind, uint8 RGB (size, size, 3)."""
    kind = rng.choice(4, p=kind_shares)
    return (gradient, texture, stripes, clutter)[kind](rng, size)


def gradient(rng: np.random.Generator, size: int) -> Pixels:
    """Two to nine random colours with smooth transitions."""
    knots = _colours(rng, int(rng.integers(2, 4)), int(rng.integers(1, 4)))
    return np.asarray(Image.fromarray(knots).resize((size, size), Image.Resampling.BICUBIC))


def texture(rng: np.random.Generator, size: int) -> Pixels:
    """A base colour with noise at two scales, like plaster, grass or fabric."""
    coarse = int(rng.integers(6, 24))
    base = rng.integers(40, 216, 3)
    strength = rng.uniform(5, 18)
    noise = rng.normal(0, strength, (coarse, coarse, 1)) + rng.normal(0, strength / 3, (coarse, coarse, 3))
    knots = np.clip(base + noise, 0, 255).astype(np.uint8)
    enlarged = Image.fromarray(knots).resize((size, size), Image.Resampling.BICUBIC)
    half = -(-size // 2)
    grain = rng.integers(-3, 4, (half, half, 1), dtype=np.int16).repeat(2, 0).repeat(2, 1)
    return np.clip(np.asarray(enlarged, np.int16) + grain[:size, :size], 0, 255).astype(np.uint8)


def stripes(rng: np.random.Generator, size: int) -> Pixels:
    """Parallel bands or checks of two colours at a random angle, with soft edges."""
    first, second = _colours(rng, 2, 1)[:, 0].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.08, 0.35) * size
    along = np.arange(size, dtype=np.float32) * np.float32(2 * np.pi / period)
    phase = along[None] * np.cos(angle, dtype=np.float32) + along[:, None] * np.sin(angle, dtype=np.float32)
    wave = np.sin(phase + np.float32(rng.uniform(0, 6.3)))
    if rng.random() < 0.3:
        wave = wave * np.sin(
            along[None] * np.sin(angle, dtype=np.float32) - along[:, None] * np.cos(angle, dtype=np.float32)
        )
    mix = np.clip(wave * np.float32(rng.uniform(0.6, 4)) * 0.5 + 0.5, 0, 1)[..., None]
    return (first + mix * (second - first)).astype(np.uint8)


def clutter(rng: np.random.Generator, size: int) -> Pixels:
    """A gradient with discs, boxes, triangles and strokes on it."""
    canvas = Image.fromarray(gradient(rng, size))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(3, 8))):
        colour = tuple(int(c) for c in rng.integers(20, 236, 3))
        x, y = rng.uniform(0, size, 2)
        radius = rng.uniform(0.03, 0.14) * size
        kind = rng.integers(4)
        if kind == 0:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        elif kind == 1:
            draw.rectangle((x - radius, y - radius * 0.6, x + radius, y + radius * 0.6), fill=colour)
        elif kind == 2:
            corners = np.stack([x, y]) + rng.uniform(-1.5, 1.5, (3, 2)) * radius
            draw.polygon([tuple(corner) for corner in corners.tolist()], fill=colour)
        else:
            dx, dy = rng.uniform(-3, 3, 2) * radius
            draw.line((x, y, x + dx, y + dy), fill=colour, width=int(rng.integers(2, 6)))
    return np.asarray(canvas)


def _colours(rng: np.random.Generator, rows: int, columns: int) -> Pixels:
    return rng.integers(20, 236, (rows, columns, 3), dtype=np.uint8)
