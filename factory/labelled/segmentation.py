"""Converts COCO segmentations (polygons and run lengths) to masks, after checking them for pycocotools' C code.

That code trusts its input: NaN and huge coordinates make it allocate all memory of the machine, and run lengths beyond
the size write past the end of the mask.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.dataset.masks import unpack_runs

MAX_RUNS = 10_000_000
"""Maximum number of runs in one annotation."""

MAX_OUTLINE = 2_000_000
"""Maximum length of one polygon's outline in pixels; pycocotools needs about 100 bytes for each."""

_COMPRESSED = re.compile(r"[0-o]*[0-O]")
"""COCO's compressed run lengths: six bits per character from "0"; the last character of a number has no sixth bit."""


def polygons_of(value: Any) -> list[list[float]] | None:
    """The polygons of a segmentation as flat lists x, y, x, y ...; None if it does not consist of polygons.

    COCO's format is a list of flat lists. A single flat list, a list of pairs and a list of lists of pairs are
    unambiguous and accepted too. Raises ValueError for anything else.
    """
    if not isinstance(value, list):
        return None
    if _are_numbers(value):
        return [value] if value else []
    if set(map(type, value)) != {list}:
        raise ValueError("a polygon must be a list of numbers x, y, x, y ...")
    if len(value) > 2 and all(len(pair) == 2 and _are_numbers(pair) for pair in value):
        return [_flat(value)]
    return [_flat(polygon) for polygon in value]


def check(value: Any, height: int, width: int) -> bool:
    """Whether a segmentation has pixels in an image of the given size; raises ValueError if it is invalid.

    None, an empty list and polygons of fewer than three points have no pixels. Only `to_mask` decodes compressed run
    lengths completely.
    """
    if value is None:
        return False
    try:
        return _has_pixels(value, height, width)
    except OverflowError as error:
        raise ValueError("it contains a number that is too large") from error


def _has_pixels(value: Any, height: int, width: int) -> bool:
    polygons = polygons_of(value)
    if polygons is not None:
        # First a list, so that every polygon is checked: `any` would stop at the first one with pixels.
        have_pixels = [_check_polygon(polygon, height, width) for polygon in polygons]
        return any(have_pixels)
    if not isinstance(value, dict):
        raise ValueError(f"it is of type {type(value).__name__}, but must be polygons or run lengths")
    _check_size(value.get("size"), height, width)
    counts = value.get("counts")
    if isinstance(counts, str):
        if len(counts) > 7 * MAX_RUNS or not _COMPRESSED.fullmatch(counts):
            raise ValueError("its compressed run lengths are truncated or contain invalid characters")
        return True
    if not isinstance(counts, list):
        raise ValueError(f"its run lengths are of type {type(counts).__name__}, but must be a string or a list")
    _check_runs(counts, height, width)
    return any(counts[1::2])


def to_mask(value: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The mask (H, W) of a segmentation; raises ValueError like `check`."""
    from pycocotools import mask as coco_mask

    if not check(value, height, width):
        return np.zeros((height, width), bool)
    polygons = polygons_of(value)
    if polygons is not None:
        # One polygon per call: pycocotools reads a list as boxes if its first polygon has four numbers.
        encoded = [coco_mask.frPyObjects([polygon], height, width)[0] for polygon in polygons if len(polygon) >= 6]
        rle = coco_mask.merge(encoded)
    elif isinstance(value["counts"], str):
        _check_runs(_decompressed(value["counts"]), height, width)
        rle = {"size": [height, width], "counts": value["counts"].encode()}
    else:
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": list(map(int, value["counts"]))}, height, width)
    decoded: NDArray[np.bool_] = coco_mask.decode(rle).astype(bool)
    return decoded


def _check_polygon(polygon: Sequence[float], height: int, width: int) -> bool:
    if len(polygon) % 2:
        raise ValueError(f"a polygon has {len(polygon)} numbers, but x and y must come in pairs")
    if len(polygon) < 6:
        return False
    if not math.isfinite(sum(polygon)):
        raise ValueError("a polygon contains NaN or infinity")
    for numbers, size in ((polygon[0::2], width), (polygon[1::2], height)):
        if min(numbers) < -size or max(numbers) > 2 * size:
            raise ValueError(
                f"a polygon extends from {min(numbers):g} to {max(numbers):g}, but the image has {size} pixels; "
                f"coordinates must be in pixels and at most one image size outside"
            )
    # No edge is longer than three times the larger side, so most polygons need no exact length.
    if len(polygon) * 1.5 * max(height, width) > MAX_OUTLINE:
        points = np.array(polygon, float).reshape(-1, 2)
        outline = np.abs(points - np.roll(points, 1, 0)).max(1).sum()
        if outline > MAX_OUTLINE:
            raise ValueError(
                f"the outline of a polygon has {outline:.0f} pixels, more than the limit of {MAX_OUTLINE:,}"
            )
    return True


def _check_size(size: Any, height: int, width: int) -> None:
    if not isinstance(size, list) or len(size) != 2 or [_integer(side) for side in size] != [height, width]:
        raise ValueError(f"its run lengths have size {size!r:.60}, but the image is {[height, width]} (height, width)")


def _check_runs(counts: Sequence[Any], height: int, width: int) -> None:
    if len(counts) > MAX_RUNS:
        raise ValueError(f"it has {len(counts):,} runs, more than the limit of {MAX_RUNS:,}")
    if not all(isinstance(run, int | float) and not isinstance(run, bool) and run >= 0 for run in counts):
        raise ValueError("its run lengths are not all non-negative numbers")
    total = sum(counts)
    if total != height * width or any(int(run) != run for run in counts):
        raise ValueError(f"its run lengths add up to {total:g}, but the image has {height * width} pixels")


def _decompressed(text: str) -> list[int]:
    """The runs of COCO's compressed format; see `unpack_runs`."""
    if re.search(r"[P-o]{7}", text):
        raise ValueError("a run length has more than 32 bits")
    return unpack_runs(text)


def _flat(polygon: list[Any]) -> list[float]:
    """A polygon as x, y, x, y ..., given so or as a list of pairs; raises ValueError for anything else."""
    if polygon and all(isinstance(pair, list) and len(pair) == 2 for pair in polygon):
        polygon = [number for pair in polygon for number in pair]
    if not _are_numbers(polygon):
        raise ValueError("a polygon must be a list of numbers x, y, x, y ...")
    return polygon


def _are_numbers(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int, float}


def _integer(value: Any) -> int | None:
    return int(value) if _are_numbers([value]) and math.isfinite(value) and int(value) == value else None
