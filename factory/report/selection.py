"""Deterministic selection of samples in one pass."""

import hashlib
import heapq
from typing import Generic, TypeVar

T = TypeVar("T")
RANKS = 2**64
"""Ranks are integers from 0 to below this number, evenly distributed over the samples."""


def rank_of(key: str) -> int:
    """A number that depends only on the key, such that the samples with the lowest ranks are a random selection."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())


class Lowest(Generic[T]):
    """Keeps the `size` items with the lowest rank; equal ranks are ordered by key. The order of adding is irrelevant.

    With `rank_of` as the rank, this is a random selection that depends on nothing but the set of keys.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[_Reversed, T]] = []

    def add(self, rank: float, key: str, item: T) -> None:
        """Offer an item."""
        entry = (_Reversed((rank, key)), item)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        elif self._heap and self._heap[0][0] < entry[0]:
            heapq.heapreplace(self._heap, entry)

    def items(self) -> list[T]:
        """The items kept, lowest rank first."""
        return [item for _, _, item in self.entries()]

    def entries(self) -> list[tuple[float, str, T]]:
        """(rank, key, item) of the items kept, lowest rank first."""
        ordered = sorted(self._heap, key=lambda entry: entry[0].order)
        return [(*order.order, item) for order, item in ordered]


class _Reversed:
    """Reverses the order, so that the heap's first entry is the one to drop."""

    def __init__(self, order: tuple[float, str]) -> None:
        self.order = order

    def __lt__(self, other: "_Reversed") -> bool:
        return other.order < self.order
