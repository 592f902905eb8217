"""The interface between the dataset reader and the export formats."""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from factory.config.keys import PATTERN
from factory.config.vocabulary import Vocabulary
from factory.dataset.masks import Mask
from factory.dataset.receipts import Blob

SPLITS = ("train", "val")


@dataclass(frozen=True)
class ExportSample:
    """A sample to export: JPEG bytes, label PNG bytes, the parsed json member and the decoded masks.

    `split` is one of SPLITS; `masks` has a bool (height, width) array for each of `annotations`.
    """

    key: str
    split: str
    image: bytes
    labels: bytes
    record: dict[str, Any]
    masks: tuple[Mask, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.record["image"]["width"], self.record["image"]["height"]

    @property
    def annotations(self) -> list[dict[str, Any]]:
        """The COCO annotations of the objects, in order."""
        return list(self.record["annotations"])


@dataclass(frozen=True)
class Unit:
    """The unit of writing and resuming: one shard, or several for formats with larger files.

    `number` counts the units of an export from 0.
    """

    number: int
    tars: tuple[Blob, ...]
    samples: int


@dataclass(frozen=True)
class ExportInfo:
    """What a format knows about an export: the target folder, the classes and the fingerprint of the recipe.

    `real` means that the images are photographs with human labels, not generated.
    """

    root: Path
    vocabulary: Vocabulary
    fingerprint: str
    real: bool = False

    @property
    def title(self) -> str:
        """A human-readable title."""
        names = self.vocabulary.names
        rest = f" and {len(names) - 3} more classes" if len(names) > 3 else ""
        kind = "Real images with their labels" if self.real else "Synthetic images with masks"
        return f"{kind} of {', '.join(names[:3])}{rest}"

    @property
    def class_indices(self) -> dict[int, int]:
        """Map category ids to contiguous class indices, starting at 0."""
        return {entry.id: index for index, entry in enumerate(self.vocabulary.classes)}


class Records(Protocol):
    """The records of all units in sample order; read from disk on each access."""

    units: int

    def of(self, split: str) -> Iterator[Any]:
        """The records of a split, one per sample."""

    def count(self, split: str) -> int:
        """The number of samples of a split."""


class Format(Protocol):
    """An export format. Writing a unit or finishing twice gives the same bytes."""

    unit_bytes: int
    """Shards are grouped into units up to this size; 0 means one shard per unit."""

    def write(self, unit: int, samples: Iterable[ExportSample]) -> list[tuple[str, Any]]:
        """Write the files of a unit; returns each sample's split and its record for `finish`, as plain data.

        The files are synchronised with the disk before it returns, so that a written unit survives a power failure.
        """

    def has(self, unit: int, split: str, records: Sequence[Any]) -> bool:
        """Whether the files of these records of a written unit still exist.

        A user may have emptied the folder: `rm -r export/*` leaves its state, which is hidden.
        """

    def finish(self, records: Records) -> None:
        """Write the files that cover all units, after all of them are written."""

    def has_finished(self, records: Records) -> bool:
        """Whether the files that `finish` writes still exist."""


def split_of(key: str, val: float) -> str:
    """The split of a sample: a hash of its key, so it does not change when the dataset is extended.

    `val` is the share of the validation split, 0 to 1.
    """
    draw = int.from_bytes(hashlib.sha256(f"split {key}".encode()).digest()[:8])
    return "val" if draw < val * 2**64 else "train"


class KeySet:
    """A set of sample keys that takes one bit per key; a set of strings takes 100 bytes."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._bits, self._count = bytearray(), 0
        for key in keys:
            self._add(int(key))

    def _add(self, number: int) -> None:
        byte, bit = divmod(number, 8)
        if byte >= len(self._bits):
            self._bits.extend(bytes(byte + 1 - len(self._bits)))
        self._count += not self._bits[byte] >> bit & 1
        self._bits[byte] |= 1 << bit

    def __contains__(self, key: str) -> bool:
        byte, bit = divmod(int(key), 8)
        return byte < len(self._bits) and bool(self._bits[byte] >> bit & 1)

    def __len__(self) -> int:
        return self._count


def write_sample_file(path: Path, data: bytes) -> None:
    """Write a file of a sample unless it has this content: lists of an earlier export may already name it."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            return
    path.write_bytes(data)


def delete_other_samples(folder: Path, keys: KeySet) -> None:
    """Delete the files of samples that are not in `keys`; other files are kept.

    An earlier export may have written samples that the dataset no longer has, and some readers read every file of a
    folder.
    """
    others = list[str]()
    # Unlike `iterdir`, without a list of millions of names. The folder of an empty split may have been deleted.
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as files:
        others = [file.path for file in files if _is_other(os.path.splitext(file.name)[0], keys)]
    for path in others:  # after the listing: a file system may skip names if files are deleted during it
        os.unlink(path)


def _is_other(stem: str, keys: KeySet) -> bool:
    return re.fullmatch(PATTERN, stem) is not None and stem not in keys
