"""Exact polygons of masks: filling them by pixel centres, as pycocotools does, reproduces the mask."""

import itertools
from collections.abc import Sequence

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

from factory.dataset.masks import Mask, mask_to_xywh

Ring = NDArray[np.float64]
"""float64 (points, 2): x and y in pixels; the image corner is (0, 0) and the first pixel centre is (0.5, 0.5)."""


def parts_of(mask: Mask) -> list[list[Ring]]:
    """The connected parts of a mask (4-connectivity), each as its outline followed by the outlines of its holes.

    Outlines run between pixels and cut their corners. A ring has at least four points and does not repeat its first
    point.
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
    """Join rings into a single one: the longest ring, connected to the others by zero-width bridges.

    For formats with one ring per object. With the even-odd or the winding rule, it fills the same area as the rings of
    `parts_of`: holes stay open and parts stay separate.
    """
    from scipy.spatial import cKDTree

    longest = max(range(len(rings)), key=lambda index: len(rings[index]))
    base = rings[longest]
    others = [ring for index, ring in enumerate(rings) if index != longest]
    tree = cKDTree(base)
    branches: dict[int, list[Ring]] = {}
    # Each other ring starts and ends at its point nearest to the base, and is inserted after that point of the base.
    for ring in others:
        distances, nearest = (np.atleast_1d(values) for values in tree.query(ring))
        start = int(np.argmin(distances))
        closed = np.concatenate([ring[start:], ring[: start + 1]])
        branches.setdefault(int(nearest[start]), []).append(closed)
    points = []
    for index in range(len(base)):
        point = base[index : index + 1]
        points.append(point)
        for branch in branches.get(index, ()):
            points += [branch, point]
    return np.concatenate(points)


def _corners(ring: Ring) -> Ring:
    """The points at which the ring changes direction."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns: NDArray[np.bool_] = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return ring[turns]
