"""Mask formats: COCO run lengths, bounding boxes and palette PNGs."""

import functools
import io
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from factory.files.decode import MAX_PIXELS, load_image

Mask = NDArray[np.bool_]
"""A mask: bool (height, width)."""

IGNORE = 255
"""Label of pixels that training and evaluation must ignore."""


class Rle(TypedDict):
    """COCO's compressed run-length encoding: `size` is [height, width], `counts` is printable text."""

    size: list[int]
    counts: str


def encode_rle(mask: Mask) -> Rle:
    """Encode a mask, bool (height, width), as compressed COCO run lengths."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in mask.shape], "counts": encoded["counts"].decode("ascii")}


def decode_rle(rle: Rle) -> Mask:
    """Decode compressed COCO run lengths.

    Args:
        rle: The `segmentation` of an annotation; `counts` is text, or bytes as pycocotools returns them.

    Returns:
        The mask, bool (height, width).

    Raises:
        ValueError: The run lengths are malformed or do not add up to the size, or the mask has more than 2^26 pixels.
    """
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= rle.keys():
        raise ValueError("run lengths have a size and counts; give the `segmentation` of an annotation")
    try:
        height, width = (int(side) for side in rle["size"])
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"the size of run lengths must be [height, width], got {rle['size']!r:.60}") from None
    if not (0 <= height <= MAX_PIXELS and 0 <= width <= MAX_PIXELS and height * width <= MAX_PIXELS):
        raise ValueError(f"a mask of {height} x {width} is too large; the limit is {MAX_PIXELS} pixels")
    runs = unpack_runs(rle["counts"])
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise ValueError(f"run lengths add up to {sum(runs)}, but the size is {height} x {width}")
    decoded: Mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T  # column by column
    return decoded


def unpack_runs(text: str | bytes) -> list[int]:
    """Parse the compressed text into run lengths, without decoding the mask.

    Each number is stored in groups of five bits, lowest first, one character per group; the sixth bit marks that
    another group follows. From the fourth run on, a number is the difference from the run before the last one. Raises
    ValueError for malformed text.
    """
    if not isinstance(text, str | bytes):
        raise ValueError(f"the run lengths must be compressed text, got a {type(text).__name__}")
    try:
        data = text if isinstance(text, bytes) else text.encode("ascii")
        codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise ValueError("the run lengths contain a character that is not ASCII") from None
    if not codes.size:
        return []
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("the run lengths contain a character outside '0' to 'o'")
    ends = np.flatnonzero(codes < 32)
    starts = np.concatenate([[0], ends + 1])[: len(ends)]
    lengths = ends - starts + 1
    if not ends.size or ends[-1] != codes.size - 1:
        raise ValueError("the run lengths end in the middle of a number")
    if lengths.max() > 7:
        raise ValueError("the run lengths contain a number of more than 35 bits")
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 31) << shifts, starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << 5 * lengths, 0)  # the highest bit is the sign
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    runs: list[int] = values.tolist()
    return runs


def mask_to_xywh(mask: Mask) -> list[int]:
    """The bounding box [left, top, width, height] of a mask in pixels; all zeros if the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return [0, 0, 0, 0]
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def intersection_over_union(first: Mask, second: Mask) -> float:
    """The IoU of two masks, 0 to 1; 0 if both are empty."""
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 0.0


def label_map(
    shape: tuple[int, int], masks: Sequence[Mask], ids: Sequence[int], ignore: Mask | None
) -> NDArray[np.uint8]:
    """Merge masks into a label image, uint8 (height, width).

    Pixels of `masks[k]` get the value `ids[k]`. Of the other pixels, those of `ignore` get `IGNORE` and the rest 0.
    """
    labels = np.zeros(shape, np.uint8)
    if ignore is not None:
        labels[ignore] = IGNORE
    for mask, value in zip(masks, ids, strict=True):
        labels[mask] = value
    return labels


@functools.cache
def palette() -> tuple[int, ...]:
    """The 256 colours of PASCAL VOC as flat RGB values; consecutive ids have contrasting colours.

    Cached, because computing it takes longer than encoding a label image.
    """
    colours = list[int]()
    # VOC spreads the bits of an id over the channels: three bits per step, from the highest bit of each channel down.
    for value in range(256):
        channels, bits = [0, 0, 0], value
        for shift in range(7, -1, -1):
            channels = [channel | (bits >> index & 1) << shift for index, channel in enumerate(channels)]
            bits >>= 3
        colours += channels
    return tuple(colours)


def palette_image(labels: NDArray[np.uint8]) -> Image.Image:
    """A palette image of labels, uint8 (height, width), in the colours of PASCAL VOC."""
    image = Image.frombytes("P", (labels.shape[1], labels.shape[0]), np.ascontiguousarray(labels).tobytes())
    image.putpalette(palette())
    return image


def encode_label_png(labels: NDArray[np.uint8]) -> bytes:
    """Encode labels, uint8 (height, width), as a palette PNG whose pixel values are the labels."""
    stream = io.BytesIO()
    palette_image(labels).save(stream, "PNG", optimize=False, compress_level=6)
    return stream.getvalue()


def decode_label_png(data: bytes) -> NDArray[np.uint8]:
    """Decode the label image of a sample, its member `seg.png`.

    Args:
        data: The content of the PNG file.

    Returns:
        The category id of each pixel, uint8 (height, width); 0 is background, and 255 marks pixels to ignore.

    Raises:
        ValueError: The data is not a palette PNG, is damaged, or has more than 2^26 pixels.
    """
    image = load_image(data, "PNG")
    if image.mode != "P":
        raise ValueError(f"a label image must be a palette PNG (mode P), got mode {image.mode}")
    return np.array(image, dtype=np.uint8)  # a copy: the memory of an image is read-only
