"""Deterministic selection of samples in one pass."""

import hashlib
from bisect import insort
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
        self.entries: list[tuple[float, str, T]] = []
        """(rank, key, item) of the items kept, lowest rank first."""

    def add(self, rank: float, key: str, item: T) -> None:
        """Offer an item."""
        insort(self.entries, (rank, key, item), key=lambda entry: entry[:2])
        del self.entries[self._size :]

    def items(self) -> list[T]:
        """The items kept, lowest rank first."""
        return [item for _, _, item in self.entries]
