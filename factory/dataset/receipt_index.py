"""An index of all receipts: blocks of their entries, so that readers do not have to read every receipt.

The index is a cache and may be deleted at any time. An entry is valid only while a listing shows the same tag for its
receipt.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from factory.dataset.receipts import needed_receipt, parse_count, parse_reason_counts, receipt_name
from factory.dataset.storage import Store
from factory.files.decode import decode_json

INDEX = "index"
BLOCK = 1000
"""Receipts per block."""


@dataclass(frozen=True)
class IndexEntry:
    """The summary of a receipt.

    `tag` is the tag of its file, `bytes` the size of its tar file; `exhausted` counts skipped samples.
    """

    tag: str
    accepted: int
    planned: int
    attempts: int
    bytes: int
    exhausted: int
    rejected: Mapping[str, int]

    def to_list(self) -> list[Any]:
        """Serialise for `_parse_block`."""
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
    """The entries of a dataset's receipts: from the blocks if still valid, otherwise from the receipts themselves."""

    def __init__(self, store: Store, recipe: str | None = None) -> None:
        """`recipe` is a fingerprint: a receipt of another recipe is then an error when it is read."""
        self._store, self._recipe = store, recipe
        self._entries: dict[int, IndexEntry] = {}
        self._changed: set[int] = set()
        self._loaded = False

    def entries(self, tags: Mapping[int, str]) -> dict[int, IndexEntry]:
        """The entries of some shards in order, given the tags of their receipts. Reads receipts that are not indexed.

        Raises UserError for a corrupt receipt. A receipt deleted since the listing is omitted.
        """
        self._load()
        self.add((n for n, tag in tags.items() if n not in self._entries or self._entries[n].tag != tag), tags)
        return {number: self._entries[number] for number in sorted(tags) if number in self._entries}

    def add(self, numbers: Iterable[int], tags: Mapping[int, str] | None = None) -> None:
        """Read receipts concurrently and add their entries. `tags` come from an earlier listing."""
        for name, tagged in self._store.get_many(receipt_name(number) for number in numbers):
            number = int(name.removeprefix("receipts/").removesuffix(".json"))
            if tagged is None:
                self._entries.pop(number, None)
                continue
            receipt = needed_receipt(self._store, number, tagged[0], self._recipe)
            self._entries[number] = IndexEntry(
                (tags or {}).get(number, tagged[1]),
                receipt.accepted,
                receipt.planned,
                receipt.attempts,
                receipt.tar.bytes,
                len(receipt.short),
                receipt.rejected,
            )
            self._changed.add(number // BLOCK)

    def save(self, only_full: bool = False) -> None:
        """Write the changed blocks; `only_full` skips blocks that are not complete yet.

        A block keeps its earlier entries: a resumed run adds only the entries of the shards that were missing.
        """
        self._load()
        for block in sorted(self._changed):
            numbers = [n for n in range(block * BLOCK, (block + 1) * BLOCK) if n in self._entries]
            if only_full and len(numbers) < BLOCK:
                continue
            entries = {str(number): self._entries[number].to_list() for number in numbers}
            self._store.put(_block_name(block), json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode())
            self._changed.discard(block)

    def _load(self) -> None:
        if self._loaded:
            return
        for _, tagged in self._store.get_many(self._store.list(INDEX), derived=True):
            for number, entry in _parse_block(tagged[0] if tagged else b"{}").items():
                self._entries.setdefault(number, entry)
        self._loaded = True


def _block_name(block: int) -> str:
    return f"{INDEX}/{block:06d}.json"


def _parse_block(data: bytes) -> dict[int, IndexEntry]:
    """The entries of a block; empty if it is corrupt, so that the receipts are read again."""
    try:
        return {int(number): _parse_entry(fields) for number, fields in decode_json(data).items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _parse_entry(fields: Any) -> IndexEntry:
    """Parse `IndexEntry.to_list`; raises ValueError, TypeError or AttributeError if it is invalid."""
    tag, accepted, planned, attempts, size, exhausted, rejected = fields
    if not isinstance(tag, str):
        raise TypeError(f"a tag must be a string, got {type(tag).__name__}")
    return IndexEntry(
        tag,
        accepted=parse_count(accepted),
        planned=parse_count(planned),
        attempts=parse_count(attempts),
        bytes=parse_count(size),
        exhausted=parse_count(exhausted),
        rejected=parse_reason_counts(rejected),
    )
