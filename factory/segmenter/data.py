"""Images with labels from finished sets and from PASCAL VOC folders, as one stream of training samples."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures

from factory.dataset import receipts, recipe_of
from factory.errors import UserError
from factory.masks import IGNORE, decode_label_png
from factory.real.labelled import LabelledImage
from factory.receipts import committed
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
    key: str
    jpg: bytes
    png: bytes
    lookup: NDArray[np.uint8]

    def decode(self) -> LabelledImage:
        image = np.asarray(Pictures.open(io.BytesIO(self.jpg)).convert("RGB"))
        return LabelledImage(self.key, image, self.lookup[decode_label_png(self.png)])


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
        from webdataset.tariterators import group_by_keys, tar_file_expander

        name = self._names[part]
        data = self._store.get(name)
        if data is None:
            raise UserError(f"{name} of {self._store.address} is gone; mend with `factory verify --repair`.")
        groups = group_by_keys(tar_file_expander([{"url": name, "stream": io.BytesIO(data)}]))
        return [_PackedRow(row["__key__"], row["jpg"], row["seg.png"], self._lookup) for row in groups]


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
