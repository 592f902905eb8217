"""Polygons of masks, exact: filled by pixel centres, as pycocotools fills them, they are the mask again."""

import itertools
from collections.abc import Sequence

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

from factory.dataset.masks import Mask, mask_to_xywh

Ring = NDArray[np.float64]
"""float64 (points, 2): x and y in pixels, where the image's corner is (0, 0) and a pixel's centre is at a half."""


def parts_of(mask: Mask) -> list[list[Ring]]:
    """The parts of a mask that hang together by pixel edges, each as its outline followed by those of its holes.

    Outlines run between the pixels and cut their corners; a ring has at least four points, and does not repeat its
    first one.
    """
    left, top, width, height = mask_to_xywh(mask)
    heights = np.pad(mask[top : top + height, left : left + width].astype(np.float64), 1)
    origin = np.array([left - 0.5, top - 0.5])
    contours = contour_generator(z=heights, name="serial", fill_type=FillType.OuterOffset)
    parts = []
    for points, offsets in zip(*contours.filled(0.5, np.inf), strict=True):
        assert isinstance(points, np.ndarray)
        assert isinstance(offsets, np.ndarray)
        bounds = itertools.pairwise(offsets.tolist())
        parts.append([_corners(points[start : stop - 1] + origin) for start, stop in bounds])
    return parts


def joined(rings: Sequence[Ring]) -> Ring:
    """One ring of several: the longest, from which the others are reached over bridges without width and back.

    For formats that know one ring per object. Filled by the even-odd or by the winding rule, it is what the rings of
    `parts_of` are: holes stay open, parts stay apart.
    """
    from scipy.spatial import cKDTree

    longest = max(range(len(rings)), key=lambda place: len(rings[place]))
    base = rings[longest]
    others = [ring for place, ring in enumerate(rings) if place != longest]
    tree = cKDTree(base)
    branches: dict[int, list[Ring]] = {}
    for ring in others:
        distances, nearest = (np.atleast_1d(found) for found in tree.query(ring))
        start = int(np.argmin(distances))
        there_and_back = np.concatenate([ring[start:], ring[: start + 1]])
        branches.setdefault(int(nearest[start]), []).append(there_and_back)
    pieces = []
    for place in range(len(base)):
        point = base[place : place + 1]
        pieces.append(point)
        for branch in branches.get(place, ()):
            pieces += [branch, point]
    return np.concatenate(pieces)


def _corners(ring: Ring) -> Ring:
    """The points at which the ring turns."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns: NDArray[np.bool_] = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return ring[turns]
