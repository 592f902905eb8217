"""Images with labels from finished sets and from PASCAL VOC folders, as one stream of training samples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from factory.config.vocabulary import Vocabulary
from factory.dataset.encode import EncodedSample
from factory.dataset.masks import IGNORE, decode_label_png
from factory.dataset.receipts import committed
from factory.dataset.state import receipts, recipe_of
from factory.dataset.storage import Store
from factory.dataset.stream import read_shard, readable
from factory.errors import UserError
from factory.files.decode import decode_jpeg
from factory.labelled.interface import LabelledImage

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

    def samples(self, part: int) -> Sequence[Packed]:
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


class DatasetSource:
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

    def samples(self, part: int) -> list[Packed]:
        """The samples of a shard."""
        name = self._names[part]
        return [
            _PackedRow(self._store, name, sample, self._lookup)
            for sample in read_shard(self._store, name, ("jpg", "seg.png"))
        ]


class Shares:
    """How many samples of each source are in the batch of a step, so that shares hold over the steps.

    A source gives the whole part of its share to every batch; the places left go, one by one, to the source that is
    furthest behind. So a share of less than one sample a batch is a sample every few steps.
    """

    def __init__(self, shares: Sequence[float], batch: int) -> None:
        """`shares` are weights. UserError unless they are finite, none negative and some positive."""
        if not all(0 <= share < float("inf") for share in shares) or not sum(shares):
            raise UserError(f"Shares of a batch are {list(shares)}; give numbers that are not negative, not all 0.")
        wanted = [share / sum(shares) * batch for share in shares]
        self._whole = [int(want) for want in wanted]
        self._parts = [want - whole for want, whole in zip(wanted, self._whole, strict=True)]
        self._left = batch - sum(self._whole)
        self._behind = [0.0] * len(shares)
        self.given = [0] * len(shares)
        """Samples of each source in all batches so far."""

    def next(self) -> list[int]:
        """Samples of each source in the next batch; they sum to the batch."""
        counts = list(self._whole)
        self._behind = [behind + part for behind, part in zip(self._behind, self._parts, strict=True)]
        for _ in range(self._left):
            place = max(range(len(counts)), key=self._behind.__getitem__)
            counts[place] += 1
            self._behind[place] -= 1
        self.given = [given + count for given, count in zip(self.given, counts, strict=True)]
        return counts


class LabelledStream:
    """Batches of several sources without end, in an order that depends on the seed alone.

    Each source gives its share of the samples, as `Shares` deals them out: `shares` are weights, by default the
    sources' sizes.
    """

    def __init__(self, sources: Sequence[Source], batch: int, seed: int, shares: Sequence[float] | None = None) -> None:
        self._shares = list(shares) if shares is not None else [float(source.size) for source in sources]
        self._sources, self._batch, self._seed = sources, batch, seed
        self._next = 0
        self._rows: list[Iterator[Packed]] = []
        self._start(0)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[LabelledImage]:
        """The samples of a step; of `world` equal parts the `rank`-th, which alone is decoded."""
        if step != self._next:
            self._start(step)
        self._next += 1
        rows = [row for rows, count in zip(self._rows, self._dealt.next(), strict=True) for row in islice(rows, count)]
        return [row.decode() for row in rows[rank::world]]

    def _start(self, step: int) -> None:
        self._next, self._rows = step, []
        self._dealt = Shares(self._shares, self._batch)
        for _ in range(step):
            self._dealt.next()
        for number, (source, given) in enumerate(zip(self._sources, self._dealt.given, strict=True)):
            epoch, place = divmod(given, source.size)
            self._rows.append(islice(self._from(source, number, epoch), place, None))

    def _from(self, source: Source, number: int, epoch: int) -> Iterator[Packed]:
        while True:
            random = np.random.default_rng((self._seed, number, epoch))
            order = random.permutation(source.parts())
            for start in range(0, len(order), _OPEN):
                opened = [row for part in order[start : start + _OPEN] for row in source.samples(int(part))]
                yield from (opened[k] for k in random.permutation(len(opened)))
            epoch += 1
