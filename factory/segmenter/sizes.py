"""The size in which networks read an image."""

from collections.abc import Sequence

MAX_ASPECT = 16


def scaled_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """The scaled (height, width) of an image, whose longer side becomes at most MAX_ASPECT times the shorter one.

    The memory of a network grows with the square of the pixels: a strip of 1 x 600, enlarged to a shorter side of 128
    pixels, required 24 GB.
    """
    scaled = [max(1, round(length * scale)) for length in size]
    height, width = (min(length, MAX_ASPECT * min(scaled)) for length in scaled)
    return height, width
