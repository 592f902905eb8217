"""Samples of several sources as one endless stream that can start at any step."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Generic, Protocol, TypeVar

import numpy as np

from factory.errors import UserError

SampleT = TypeVar("SampleT")
SampleT_co = TypeVar("SampleT_co", covariant=True)

_SHUFFLED_PARTS = 4
"""Number of parts whose samples are shuffled together."""


class LazySample(Protocol[SampleT_co]):
    """A sample that has not been decoded yet."""

    def decode(self) -> SampleT_co:
        """Decode it."""
        ...


class Source(Protocol[SampleT_co]):
    """A source of samples, divided into parts that are read one at a time."""

    @property
    def size(self) -> int:
        """Number of samples."""
        ...

    @property
    def identity(self) -> str:
        """A text that identifies these samples; checkpoints record it."""
        ...

    def parts(self) -> int:
        """Number of parts."""
        ...

    def samples(self, part: int) -> Sequence[LazySample[SampleT_co]]:
        """The samples of a part, in order."""
        ...


class Shares:
    """The number of samples of each source in every batch, such that the shares hold over time.

    Every batch contains the integer part of each source's share. The remaining samples go, one by one, to the source
    that is furthest behind, so a share of less than one sample per batch yields one sample every few steps.
    """

    def __init__(self, shares: Sequence[float], batch: int) -> None:
        """`shares` are weights. UserError unless they are finite, non-negative and not all 0."""
        if not all(0 <= share < float("inf") for share in shares) or not sum(shares):
            raise UserError(
                f"the shares of the sources must be finite numbers of at least 0, not all 0; got {list(shares)}."
            )
        per_batch = [share / sum(shares) * batch for share in shares]
        self._integers = [int(count) for count in per_batch]
        self._fractions = [count - integer for count, integer in zip(per_batch, self._integers, strict=True)]
        self._remaining = batch - sum(self._integers)
        self._deficits = [0.0] * len(shares)
        self.totals = [0] * len(shares)
        """Samples of each source in all batches so far."""

    def next(self) -> list[int]:
        """Samples of each source in the next batch; they add up to the batch size."""
        counts = list(self._integers)
        self._deficits = [deficit + part for deficit, part in zip(self._deficits, self._fractions, strict=True)]
        for _ in range(self._remaining):
            index = max(range(len(counts)), key=self._deficits.__getitem__)
            counts[index] += 1
            self._deficits[index] -= 1
        self.totals = [total + count for total, count in zip(self.totals, counts, strict=True)]
        return counts


class SampleStream(Generic[SampleT]):
    """Endless batches from several sources, in an order that depends only on the seed.

    Each source contributes its share of the samples, as computed by `Shares`. `shares` are weights and default to the
    sizes of the sources.
    """

    def __init__(
        self, sources: Sequence[Source[SampleT]], batch: int, seed: int, shares: Sequence[float] | None = None
    ) -> None:
        self._shares = list(shares) if shares is not None else [float(source.size) for source in sources]
        self._sources, self._batch, self._seed = sources, batch, seed
        self._next = 0
        self._iterators: list[Iterator[LazySample[SampleT]]] = []
        self._start(0)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[SampleT]:
        """The samples of a step. If `world` processes train together, only those of process `rank` are decoded."""
        if step != self._next:
            self._start(step)
        self._next += 1
        samples = [
            sample
            for iterator, count in zip(self._iterators, self._counts.next(), strict=True)
            for sample in islice(iterator, count)
        ]
        return [sample.decode() for sample in samples[rank::world]]

    def _start(self, step: int) -> None:
        """Position the stream before `step`: each source skips the samples of the earlier batches."""
        self._next, self._iterators = step, []
        self._counts = Shares(self._shares, self._batch)
        for _ in range(step):
            self._counts.next()
        for number, (source, used) in enumerate(zip(self._sources, self._counts.totals, strict=True)):
            epoch, offset = divmod(used, source.size)
            self._iterators.append(islice(self._shuffled(source, number, epoch), offset, None))

    def _shuffled(self, source: Source[SampleT], number: int, epoch: int) -> Iterator[LazySample[SampleT]]:
        while True:
            random = np.random.default_rng((self._seed, number, epoch))
            order = random.permutation(source.parts())
            for start in range(0, len(order), _SHUFFLED_PARTS):
                parts = order[start : start + _SHUFFLED_PARTS]
                samples = [sample for part in parts for sample in source.samples(int(part))]
                yield from (samples[k] for k in random.permutation(len(samples)))
            epoch += 1
