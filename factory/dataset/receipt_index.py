"""What all receipts say, without reading them all: blocks of their rows, kept beside them and checked by a listing.

A cache: it may be deleted at any time. A row counts only while the listing shows the same tag for its receipt.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from factory.dataset.receipts import parse_receipt, receipt_name, tar_name
from factory.dataset.storage import Store
from factory.errors import UserError

INDEX = "index"
BLOCK = 1000
"""Receipts of a block."""


@dataclass(frozen=True)
class IndexEntry:
    """A receipt in short. `tag` is that of the receipt's file, `short` the number of samples that no attempt filled."""

    tag: str
    accepted: int
    planned: int
    attempts: int
    bytes: int
    exhausted: int
    rejected: Mapping[str, int]

    def to_list(self) -> list[Any]:
        """As `_row` reads it."""
        return [
            self.tag,
            self.accepted,
            self.planned,
            self.attempts,
            self.bytes,
            self.exhausted,
            dict(sorted(self.rejected.items())),
        ]


class ReceiptIndex:
    """The rows of a dataset's receipts: those of the blocks that still hold, the others read from the receipts."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: dict[int, IndexEntry] = {}
        self._changed: set[int] = set()
        self._loaded = False

    def known(self) -> int:
        """How many rows the blocks hold."""
        self._load()
        return len(self._rows)

    def rows(self, tags: Mapping[int, str]) -> dict[int, IndexEntry]:
        """The rows of some shards in order, by number and tag of their receipts; reads what is not known yet.

        UserError names a receipt that is broken. One that vanished since it was listed is left out.
        """
        self._load()
        self.add((n for n, tag in tags.items() if n not in self._rows or self._rows[n].tag != tag), tags)
        return {number: self._rows[number] for number in sorted(tags) if number in self._rows}

    def add(self, numbers: Iterable[int], tags: Mapping[int, str] | None = None) -> None:
        """Read some receipts, many at once. `tags` are those of a listing made before."""
        for name, found in self._store.get_many(receipt_name(number) for number in numbers):
            number = int(name.removeprefix("receipts/").removesuffix(".json"))
            if found is None:
                self._rows.pop(number, None)
                continue
            try:
                receipt = parse_receipt(found[0])
            except ValueError as error:
                raise UserError(
                    f"the receipt of shard {number} is broken ({error}); repair it with `factory verify --repair`."
                ) from error
            if receipt.tar.name != tar_name(number):
                raise UserError(
                    f"the receipt of shard {number} is of {receipt.tar.name}; repair it with `factory verify --repair`."
                )
            self._rows[number] = IndexEntry(
                (tags or {}).get(number, found[1]),
                receipt.accepted,
                receipt.planned,
                receipt.attempts,
                receipt.tar.bytes,
                len(receipt.short),
                receipt.rejected,
            )
            self._changed.add(number // BLOCK)

    def save(self, only_full: bool = False) -> None:
        """Write the blocks that changed; `only_full` leaves those that will still grow for later."""
        for block in sorted(self._changed):
            numbers = [n for n in range(block * BLOCK, (block + 1) * BLOCK) if n in self._rows]
            if only_full and len(numbers) < BLOCK:
                continue
            rows = {str(number): self._rows[number].to_list() for number in numbers}
            self._store.put(_block_name(block), json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode())
            self._changed.discard(block)

    def _load(self) -> None:
        if self._loaded:
            return
        for _, found in self._store.get_many(self._store.list(INDEX)):
            for number, row in _rows(found[0] if found else b"{}").items():
                self._rows.setdefault(number, row)
        self._loaded = True


def _block_name(block: int) -> str:
    return f"{INDEX}/{block:06d}.json"


def _rows(data: bytes) -> dict[int, IndexEntry]:
    """A block's rows; none where it is broken, for then they are read from the receipts again."""
    try:
        return {int(number): IndexEntry(*values) for number, values in json.loads(data).items()}
    except (ValueError, TypeError, AttributeError):
        return {}
