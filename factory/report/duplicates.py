"""Near-duplicates in a whole dataset: pairs of image hashes that differ in few bits, without comparing all pairs."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

DISTANCE = 2
"""Hashes that differ in at most this many of 64 bits belong to near-duplicates; the default of the shard's filter."""
_BANDS = DISTANCE + 2
_BITS = 64 // _BANDS
_CHUNK = 1 << 22
"""Pairs compared at once."""

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Duplicates:
    """Pairs and groups of near-duplicates. A group is connected by pairs; `groups` lists the largest ones first.

    `pairs` counts the pairs of images; `images` those that are in a group; each group holds positions in the input.
    """

    pairs: int
    identical_pairs: int
    images: int
    groups: list[NDArray[np.int64]]

    def to_dict(self, total: int) -> dict[str, Any]:
        """The counts as plain data, for `total` images."""
        return {
            "distance": DISTANCE,
            "pairs": self.pairs,
            "identical_pairs": self.identical_pairs,
            "images": self.images,
            "groups": len(self.groups),
            "largest_group": max((len(group) for group in self.groups), default=0),
            "redundant": sum(len(group) - 1 for group in self.groups),
            "total": total,
        }


def find_duplicates(hashes: Hashes) -> Duplicates:
    """Find all pairs of hashes, uint64 (N,), that differ in at most `DISTANCE` bits.

    Equal hashes are merged first. A pair that differs in at most 2 bits agrees in at least two of four bands of 16
    bits, so only hashes that agree in two bands are compared: every pair is found.
    """
    unique, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    first, second = _close_pairs(unique)
    identical = int((counts * (counts - 1) // 2).sum())
    pairs = identical + int((counts[first] * counts[second]).sum())
    size = len(unique)
    graph = coo_matrix((np.ones(len(first), np.int8), (first, second)), (size, size))
    labels = connected_components(graph, directed=False)[1][inverse] if size else np.zeros(0, np.int64)
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    groups = [order[start:stop] for start, stop in _several(starts, len(order))]
    groups.sort(key=lambda group: (-len(group), int(group[0])))
    return Duplicates(pairs, identical, sum(len(group) for group in groups), groups)


def _several(starts: NDArray[np.int64], size: int) -> list[list[int]]:
    """[start, stop) of the runs with more than one member; of millions of images, nearly all are alone."""
    bounds = np.stack([starts, np.append(starts[1:], size)[: len(starts)]], 1)
    several: list[list[int]] = bounds[bounds[:, 1] - bounds[:, 0] > 1].tolist()
    return several


def _close_pairs(unique: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of all pairs of different hashes within `DISTANCE`, each pair once."""
    size = len(unique)
    found: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for bands in combinations(range(_BANDS), _BANDS - DISTANCE):
        mask = np.uint64(sum(((1 << _BITS) - 1) << band * _BITS for band in bands))
        order = np.argsort(unique & mask, kind="stable")
        keys = (unique & mask)[order]
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        for start, stop in _several(starts, size):
            found.extend(_compare(unique, np.sort(order[start:stop]), size))
    codes = np.unique(np.concatenate(found))
    return codes // max(size, 1), codes % max(size, 1)


def _compare(unique: Hashes, members: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Compare all pairs of the members, in blocks of bounded memory; a pair is coded as first * size + second."""
    rows = max(1, _CHUNK // len(members))
    for start in range(0, len(members), rows):
        block = members[start : start + rows]
        close = np.bitwise_count(unique[block][:, None] ^ unique[members][None, :]) <= DISTANCE
        first, second = np.nonzero(close)
        kept = block[first] < members[second]
        yield block[first][kept] * size + members[second][kept]
