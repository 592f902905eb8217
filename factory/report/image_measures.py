"""Measures of an image that show whether a dataset is blurred, dark or washed out."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures

from factory.dataset.records import Image
from factory.files.decode import open_image

MEASURED_SIDE = 256
"""Images whose shorter side has at least twice as many pixels are decoded at 1/2, 1/4 or 1/8 of their size."""
FEATURE_SIDE = 128
DARK, BRIGHT = 2, 253
"""Pixels with a luminance of at most DARK or at least BRIGHT count as clipped."""
_LEAST_CLIPPED = 1e-4


class ImageMeasures(NamedTuple):
    """Of the luminance, 0 to 255: mean, standard deviation, clipping and sharpness.

    `dark` and `bright` are log10 of the share of clipped pixels, at least -4. `sharpness` is log10(1 + variance of the
    Laplacian with four neighbours).
    """

    luminance: float
    contrast: float
    dark: float
    bright: float
    sharpness: float


def measure_jpeg(data: bytes) -> ImageMeasures:
    """Measure a JPEG; raises ValueError if it cannot be decoded."""
    return measure_luminance(np.asarray(_decoded(data, "L", MEASURED_SIDE)))


def measure_luminance(grey: NDArray[np.uint8]) -> ImageMeasures:
    """Measure a luminance image, uint8 (height, width)."""
    values = grey.astype(np.int16)
    laplacian = 4 * values[1:-1, 1:-1] - values[:-2, 1:-1] - values[2:, 1:-1] - values[1:-1, :-2] - values[1:-1, 2:]
    return ImageMeasures(
        luminance=float(grey.mean()),
        contrast=float(grey.std()),
        dark=_log_share(grey <= DARK),
        bright=_log_share(grey >= BRIGHT),
        sharpness=float(np.log10(1 + (laplacian.var() if laplacian.size else 0.0))),
    )


def _log_share(clipped: NDArray[np.bool_]) -> float:
    return float(np.log10(max(_LEAST_CLIPPED, clipped.mean())))


def feature_image(data: bytes) -> Image:
    """A JPEG as the feature network sees it: uint8 RGB (128, 128, 3). Raises ValueError if it cannot be decoded."""
    image = _decoded(data, "RGB", FEATURE_SIDE)
    return np.asarray(image.resize((FEATURE_SIDE, FEATURE_SIDE), Pictures.Resampling.BOX))


def _decoded(data: bytes, mode: str, side: int) -> Pictures.Image:
    """Decode a JPEG, at a fraction of its size if the shorter side keeps at least `side` pixels: far faster."""
    image = open_image(data, "JPEG")
    scale = max(1, min(image.size) // side)
    image.draft(mode, (-(-image.width // scale), -(-image.height // scale)))
    try:
        return image.convert(mode)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"the JPEG is truncated or corrupt: {error}") from error
