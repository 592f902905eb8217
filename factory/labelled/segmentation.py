"""One COCO segmentation as a mask: polygons and run lengths, checked before pycocotools' C code sees them.

That code trusts what it gets: NaN and huge coordinates make it allocate all memory of the machine, and run lengths
beyond the size write past the mask.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.dataset.masks import unpack_runs

MAX_RUNS = 10_000_000
"""Runs of one annotation."""

MAX_OUTLINE = 2_000_000
"""Pixels along the outline of one polygon; pycocotools keeps about 100 bytes for each."""

_TEXT = re.compile(r"[0-o]*[0-O]")
"""COCO's compressed run lengths: six bits a letter from "0", the last letter of a number without the sixth bit."""


def polygons_of(value: Any) -> list[list[float]] | None:
    """The polygons of a segmentation as flat lists x, y, x, y ...; None where it is not made of polygons.

    COCO's form is a list of flat lists. A single flat list, a list of pairs and a list of lists of pairs mean one thing
    only, and are read. ValueError says what is wrong.
    """
    if not isinstance(value, list):
        return None
    if _are_numbers(value):
        return [value] if value else []
    if set(map(type, value)) != {list}:
        raise ValueError("a polygon is a list of numbers x, y, x, y ...")
    if len(value) > 2 and all(len(item) == 2 and _are_numbers(item) for item in value):
        return [[number for pair in value for number in pair]]
    return [_flat(item) for item in value]


def check(value: Any, height: int, width: int) -> bool:
    """Whether a segmentation has pixels, in a picture of a size; ValueError says what is wrong with it.

    None, an empty list and polygons of fewer than three points have none. The text of compressed run lengths is looked
    at in whole by `to_mask` only.
    """
    if value is None:
        return False
    try:
        return _has_pixels(value, height, width)
    except OverflowError as error:
        raise ValueError("it holds a number that is too large") from error


def _has_pixels(value: Any, height: int, width: int) -> bool:
    polygons = polygons_of(value)
    if polygons is not None:
        found = [_check_polygon(polygon, height, width) for polygon in polygons]
        return any(found)
    if not isinstance(value, dict):
        raise ValueError(f"it is a {type(value).__name__}; allowed are polygons and run lengths")
    _check_size(value.get("size"), height, width)
    counts = value.get("counts")
    if isinstance(counts, str):
        if len(counts) > 7 * MAX_RUNS or not _TEXT.fullmatch(counts):
            raise ValueError("its run lengths are cut short, or hold letters that COCO's text has not")
        return True
    if not isinstance(counts, list):
        raise ValueError(f"its run lengths are a {type(counts).__name__}; allowed are a text and a list")
    _check_runs(counts, height, width)
    return any(counts[1::2])


def to_mask(value: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels (H, W) of a segmentation; ValueError as `check`."""
    from pycocotools import mask as coco_mask

    if not check(value, height, width):
        return np.zeros((height, width), bool)
    polygons = polygons_of(value)
    if polygons is not None:
        # Each by itself: pycocotools takes a list whose first polygon has four numbers for boxes.
        packed = [coco_mask.frPyObjects([one], height, width)[0] for one in polygons if len(one) >= 6]
        rle = coco_mask.merge(packed)
    elif isinstance(value["counts"], str):
        _check_runs(_runs_of_text(value["counts"]), height, width)
        rle = {"size": [height, width], "counts": value["counts"].encode()}
    else:
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": list(map(int, value["counts"]))}, height, width)
    decoded: NDArray[np.bool_] = coco_mask.decode(rle).astype(bool)
    return decoded


def _check_polygon(polygon: Sequence[float], height: int, width: int) -> bool:
    if len(polygon) % 2:
        raise ValueError(f"a polygon has {len(polygon)} numbers; x and y come in pairs")
    if len(polygon) < 6:
        return False
    if not math.isfinite(sum(polygon)):
        raise ValueError("a polygon holds NaN or an infinite number")
    for numbers, size in ((polygon[0::2], width), (polygon[1::2], height)):
        if min(numbers) < -size or max(numbers) > 2 * size:
            raise ValueError(
                f"a polygon reaches from {min(numbers):g} to {max(numbers):g} where the image has {size} pixels; "
                f"coordinates are pixels of the image, at most its size beyond its edges"
            )
    # No edge is longer than three times the larger side, so that nearly all polygons need no closer look.
    if len(polygon) * 1.5 * max(height, width) > MAX_OUTLINE:
        points = np.array(polygon, float).reshape(-1, 2)
        outline = np.abs(points - np.roll(points, 1, 0)).max(1).sum()
        if outline > MAX_OUTLINE:
            raise ValueError(f"the outline of a polygon has {outline:.0f} pixels; at most {MAX_OUTLINE:,} are read")
    return True


def _check_size(size: Any, height: int, width: int) -> None:
    if not isinstance(size, list) or len(size) != 2 or [_whole(side) for side in size] != [height, width]:
        raise ValueError(
            f"its run lengths are of the size {size!r:.60}, the image is {[height, width]} (height, width)"
        )


def _check_runs(counts: Sequence[Any], height: int, width: int) -> None:
    if len(counts) > MAX_RUNS:
        raise ValueError(f"it has {len(counts):,} runs; at most {MAX_RUNS:,} are read")
    if not all(isinstance(run, int | float) and not isinstance(run, bool) and run >= 0 for run in counts):
        raise ValueError("its run lengths are not all numbers from 0 up")
    total = sum(counts)
    if total != height * width or any(int(run) != run for run in counts):
        raise ValueError(f"its run lengths add up to {total:g}, the image has {height * width} pixels")


def _runs_of_text(text: str) -> list[int]:
    """The runs of COCO's text: each is the difference to the run before last, in groups of five bits, lowest first."""
    if re.search(r"[P-o]{7}", text):
        raise ValueError("a run length has more than 32 bits")
    return unpack_runs(text)


def _flat(value: list[Any]) -> list[float]:
    if value and all(isinstance(item, list) and len(item) == 2 for item in value):
        value = [number for pair in value for number in pair]
    if not _are_numbers(value):
        raise ValueError("a polygon is a list of numbers x, y, x, y ...")
    return value


def _are_numbers(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int, float}


def _whole(value: Any) -> int | None:
    return int(value) if _are_numbers([value]) and math.isfinite(value) and int(value) == value else None
