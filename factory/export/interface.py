"""What passes between the dataset that is read and the formats that are written."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from factory.config.vocabulary import Vocabulary
from factory.dataset.masks import Mask
from factory.dataset.receipts import Blob

SPLITS = ("train", "val")


@dataclass(frozen=True)
class ExportSample:
    """One sample as it lies in its shard: JPEG bytes, palette PNG bytes, the json member read, and its masks.

    `split` is one of SPLITS; `masks` are the pixels of each of `objects`, bool (height, width).
    """

    key: str
    split: str
    image: bytes
    labels: bytes
    row: dict[str, Any]
    masks: tuple[Mask, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.row["image"]["width"], self.row["image"]["height"]

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The annotations, in their order."""
        rows: list[dict[str, Any]] = self.row["annotations"]
        return rows


@dataclass(frozen=True)
class Unit:
    """What is written at once and resumed by: one shard, or several where a format wants larger files.

    `number` counts the units of an export from 0.
    """

    number: int
    tars: tuple[Blob, ...]
    samples: int


@dataclass(frozen=True)
class Subject:
    """What a format is told of the export: where it goes, the classes, and the recipe's fingerprint.

    `real` says that the images are photographs with labels made by people, not generated ones.
    """

    root: Path
    vocabulary: Vocabulary
    fingerprint: str
    real: bool = False

    @property
    def title(self) -> str:
        """A line for people."""
        names = self.vocabulary.names
        more = f" and {len(names) - 3} more classes" if len(names) > 3 else ""
        kind = "Real images with their labels" if self.real else "Synthetic images with masks"
        return f"{kind} of {', '.join(names[:3])}{more}"

    @property
    def places(self) -> dict[int, int]:
        """From category id to the class's place in the vocabulary, from 0 and without gaps."""
        return {entry.id: place for place, entry in enumerate(self.vocabulary.classes)}


class Records(Protocol):
    """What the units left for the end, in the order of the samples; read from disk each time."""

    units: int

    def of(self, split: str) -> Iterator[Any]:
        """The records of a split, one per sample."""

    def count(self, split: str) -> int:
        """The number of samples of a split."""


class Format(Protocol):
    """One form of a dataset. Writing a unit or the end twice gives the same bytes."""

    unit_bytes: int
    """Shards are put together up to this size; 0: each by itself."""

    def write(self, unit: int, samples: Iterable[ExportSample]) -> list[tuple[str, Any]]:
        """Write the files of a unit; returns each sample's split and what the end needs of it, as plain data."""

    def finish(self, records: Records) -> None:
        """Write what stands over all units, once all of them are written."""


def split_of(key: str, val: float) -> str:
    """The split of a sample: a function of its key alone, so it stays the same when the dataset grows.

    `val` is the share of the validation split, 0 to 1.
    """
    draw = int.from_bytes(hashlib.sha256(f"split {key}".encode()).digest()[:8])
    return "val" if draw < val * 2**64 else "train"
