"""Images with labels from finished sets and from PASCAL VOC folders, as one stream of training samples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from factory.dataset import receipts, recipe_of
from factory.decode import decode_jpeg
from factory.errors import UserError
from factory.masks import IGNORE, decode_label_png
from factory.real.labelled import LabelledImage
from factory.receipts import committed
from factory.shards.encode import EncodedSample
from factory.shards.read import read_shard, readable
from factory.store import Store
from factory.vocabulary import Vocabulary

_OPEN = 4


class Packed(Protocol):
    """A sample that is not decoded yet."""

    def decode(self) -> LabelledImage:
        """Decompress."""
        ...


class Source(Protocol):
    """Where samples come from, in parts that are read one at a time."""

    @property
    def size(self) -> int:
        """Samples in all."""
        ...

    @property
    def identity(self) -> str:
        """What tells these samples from others, in words."""
        ...

    def parts(self) -> int:
        """How many parts there are."""
        ...

    def rows(self, part: int) -> Sequence[Packed]:
        """The samples of a part, in order."""
        ...


@dataclass(frozen=True)
class _PackedRow:
    store: Store
    tar: str
    sample: EncodedSample
    lookup: NDArray[np.uint8]

    def decode(self) -> LabelledImage:
        key, members = self.sample.key, self.sample.members
        with readable(self.store, f"sample {key} in {self.tar}"):
            image, labels = decode_jpeg(members["jpg"]), decode_label_png(members["seg.png"])
            if image.shape[:2] != labels.shape:
                raise ValueError(f"its image is {image.shape[:2]}, its labels {labels.shape}")
        return LabelledImage(key, image, self.lookup[labels])


class SetSource:
    """A finished or unfinished set: its shards are the parts."""

    def __init__(self, store: Store, vocabulary: Vocabulary) -> None:
        """UserError where there is no set, no shard, or a class that the vocabulary has not."""
        recipe = recipe_of(store)
        done = sorted(committed(store))
        self._store, self._names = store, [row.tar.name for row in receipts(store, done)]
        self.size = sum(row.accepted for row in receipts(store, done))
        if not self.size:
            raise UserError(f"{store.address} has no sample yet; finish it with `factory generate`.")
        self.identity = f"{self.size} samples of recipe {recipe.fingerprint()[:12]}"
        self._lookup = np.full(256, IGNORE, np.uint8)
        self._lookup[0] = 0
        for entry in recipe.vocabulary().classes:
            self._lookup[entry.id] = vocabulary.names.index(vocabulary.resolve(entry.name).name) + 1

    def parts(self) -> int:
        """Shards."""
        return len(self._names)

    def rows(self, part: int) -> list[Packed]:
        """The samples of a shard."""
        name = self._names[part]
        return [
            _PackedRow(self._store, name, sample, self._lookup)
            for sample in read_shard(self._store, name, ("jpg", "seg.png"))
        ]


class LabelledStream:
    """Batches of several sources without end, in an order that depends on the seed alone.

    Each source gives its share of every batch: `shares` are weights, by default the sources' sizes.
    """

    def __init__(self, sources: Sequence[Source], batch: int, seed: int, shares: Sequence[float] | None = None) -> None:
        weights = np.array(shares if shares is not None else [source.size for source in sources], float)
        edges = np.round(np.cumsum(weights / weights.sum()) * batch).astype(int)
        self._counts = np.diff(edges, prepend=0)
        self._sources, self._seed, self._next = sources, seed, 0
        self._rows: list[Iterator[Packed]] = []
        self._start(0)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[LabelledImage]:
        """The samples of a step; of `world` equal parts the `rank`-th, which alone is decoded."""
        if step != self._next:
            self._start(step)
        self._next += 1
        rows = [row for rows, count in zip(self._rows, self._counts, strict=True) for row in islice(rows, int(count))]
        return [row.decode() for row in rows[rank::world]]

    def _start(self, step: int) -> None:
        self._next, self._rows = step, []
        for number, (source, count) in enumerate(zip(self._sources, self._counts, strict=True)):
            epoch, place = divmod(step * int(count), source.size)
            self._rows.append(islice(self._from(source, number, epoch), place, None))

    def _from(self, source: Source, number: int, epoch: int) -> Iterator[Packed]:
        while True:
            random = np.random.default_rng((self._seed, number, epoch))
            order = random.permutation(source.parts())
            for start in range(0, len(order), _OPEN):
                opened = [row for part in order[start : start + _OPEN] for row in source.rows(int(part))]
                yield from (opened[k] for k in random.permutation(len(opened)))
            epoch += 1
