"""Masks in the forms that readers know: COCO run lengths, boxes, palette pictures."""

import io
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from factory.files.decode import MAX_PIXELS, load_picture

Mask = NDArray[np.bool_]
"""bool (height, width)."""

IGNORE = 255
"""The value of pixels in a label map that no reader should count."""


class Rle(TypedDict):
    """COCO's compressed run-length encoding: `size` is [height, width], `counts` its printable text."""

    size: list[int]
    counts: str


def encode_rle(mask: Mask) -> Rle:
    """The run lengths of `mask`, column by column, beginning with a run of False (which may be empty)."""
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    runs = np.diff(edges).tolist()
    if flat.size and flat[0]:
        runs.insert(0, 0)
    return {"size": [int(side) for side in mask.shape], "counts": _pack(runs)}


def decode_rle(rle: Rle) -> Mask:
    """The mask of an encoding; ValueError where the runs do not add up to its size, or it is over `MAX_PIXELS`."""
    height, width = rle["size"]
    if not (0 <= height <= MAX_PIXELS and 0 <= width <= MAX_PIXELS and height * width <= MAX_PIXELS):
        raise ValueError(f"a mask of {height} x {width} is too large, at most {MAX_PIXELS} pixels are read")
    runs = unpack_runs(rle["counts"])
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise ValueError(f"run lengths add up to {sum(runs)}, the size is {height} x {width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def _pack(runs: Sequence[int]) -> str:
    """Each run as the difference to the run before last, in groups of five bits, lowest first."""
    text = []
    for position, run in enumerate(runs):
        value = run - runs[position - 2] if position > 2 else run
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text.append(chr(bits + (32 if more else 0) + 48))
    return "".join(text)


def unpack_runs(text: str) -> list[int]:
    """The runs of COCO's text, each the difference to the run before last, in groups of five bits, lowest first."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError(f"the run lengths hold {letter!r}, or a number of more than 35 bits")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return runs


def mask_to_xywh(mask: Mask) -> list[int]:
    """The box [left, top, width, height] in pixels that just holds the mask; zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return [0, 0, 0, 0]
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def intersection_over_union(first: Mask, second: Mask) -> float:
    """0..1; two empty masks have 0."""
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 0.0


def label_map(
    shape: tuple[int, int], masks: Sequence[Mask], ids: Sequence[int], ignore: Mask | None
) -> NDArray[np.uint8]:
    """uint8 (height, width): 0 background, each mask's id, IGNORE where `ignore` is set and no mask is."""
    labels = np.zeros(shape, np.uint8)
    if ignore is not None:
        labels[ignore] = IGNORE
    for mask, value in zip(masks, ids, strict=True):
        labels[mask] = value
    return labels


def palette() -> list[int]:
    """PASCAL VOC's 256 colours, flat RGB: neighbouring ids get colours far apart."""
    colours = []
    for value in range(256):
        channels, bits = [0, 0, 0], value
        for shift in range(7, -1, -1):
            channels = [channel | (bits >> place & 1) << shift for place, channel in enumerate(channels)]
            bits >>= 3
        colours += channels
    return colours


def palette_image(labels: NDArray[np.uint8]) -> Image.Image:
    """An image of mode P whose pixel values are the labels, shown in PASCAL VOC's colours."""
    image = Image.frombytes("P", (labels.shape[1], labels.shape[0]), np.ascontiguousarray(labels).tobytes())
    image.putpalette(palette())
    return image


def encode_label_png(labels: NDArray[np.uint8]) -> bytes:
    """A palette PNG whose pixel values are the labels."""
    stream = io.BytesIO()
    palette_image(labels).save(stream, "PNG", optimize=False, compress_level=6)
    return stream.getvalue()


def decode_label_png(data: bytes) -> NDArray[np.uint8]:
    """The labels of a palette PNG, uint8 (height, width); ValueError for another kind of picture."""
    picture = load_picture(data, "PNG")
    if picture.mode != "P":
        raise ValueError(f"a label picture has a palette, this one is of mode {picture.mode}")
    return np.asarray(picture, dtype=np.uint8)
