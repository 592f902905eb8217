"""Finds samples with the same image, with 20 bytes of memory per sample."""

from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from factory.config.keys import key_of

DIGEST_BYTES = 16
"""Bytes of an image's digest: enough that no two different images have the same one."""


class Images:
    """The images of a dataset, in the order in which its shards were checked."""

    def __init__(self) -> None:
        self._digests, self._indices = bytearray(), array("I")
        self._shards, self._ends = array("I"), array("Q")

    def add(self, shard: int, images: Sequence[tuple[bytes, str]]) -> None:
        """Add the images of a shard: (digest, sample key)."""
        for digest, key in images:
            self._digests += digest
            self._indices.append(int(key))
        self._shards.append(shard)
        self._ends.append(len(self._indices))

    def duplicates(self) -> Iterator[tuple[int, str]]:
        """(shard, problem) for each sample whose image another sample before it has, in order."""
        # The first half of the digest finds the few images that can be equal; then the whole digest decides.
        halves = np.frombuffer(self._digests, np.uint64)[:: DIGEST_BYTES // 8]
        order = np.argsort(halves, kind="stable")
        halves = halves[order]
        equal = halves[1:] == halves[:-1]
        seen: dict[bytes, int] = {}
        for position in sorted({*order[1:][equal].tolist(), *order[:-1][equal].tolist()}):
            index = self._indices[position]
            first = seen.setdefault(
                bytes(self._digests[DIGEST_BYTES * position : DIGEST_BYTES * (position + 1)]), index
            )
            if index != first:
                shard = self._shards[int(np.searchsorted(self._ends, position, side="right"))]
                yield shard, f"{key_of(index)} has the same image as {key_of(first)}"
