"""Receipts of many shards, and the totals over them."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from factory.config.plan import Plan
from factory.dataset.ordered_map import ordered_map
from factory.dataset.receipt_index import IndexEntry, ReceiptIndex
from factory.dataset.receipts import Receipt, check_same_recipe, needed_receipt, receipt_name, receipt_tags
from factory.dataset.storage import Store
from factory.errors import UserError

_READERS = 32


@dataclass(frozen=True)
class Totals:
    """Totals of the finished shards of a dataset.

    Attributes:
        shards: Finished shards.
        accepted: Samples in these shards.
        planned: Samples that these shards would have if none were skipped.
        attempts: Images that were generated.
        bytes: Size of the tar files.
        exhausted: Samples that were rejected in every attempt and skipped.
        rejected: Rejected attempts by reason.
    """

    shards: int = 0
    accepted: int = 0
    planned: int = 0
    attempts: int = 0
    bytes: int = 0
    exhausted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)


def read_receipts(store: Store, numbers: list[int], recipe: str | None = None) -> Iterator[Receipt]:
    """Read the receipts of some shards concurrently, with the checks of `needed_receipt`; missing ones are left out."""

    def read(number: int) -> Receipt | None:
        data = store.get(receipt_name(number))
        return None if data is None else needed_receipt(store, number, data, recipe)

    found = ordered_map(read, numbers, _READERS, ahead=1000, name="receipts")
    return (receipt for _, receipt in found if receipt is not None)


def totals_of(entries: Mapping[int, IndexEntry]) -> Totals:
    """Sum the index entries of some shards."""
    sums: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for entry in entries.values():
        sums.update(
            shards=1,
            accepted=entry.accepted,
            planned=entry.planned,
            attempts=entry.attempts,
            bytes=entry.bytes,
            exhausted=entry.exhausted,
        )
        rejected.update(entry.rejected)
    return Totals(
        shards=sums["shards"],
        accepted=sums["accepted"],
        planned=sums["planned"],
        attempts=sums["attempts"],
        bytes=sums["bytes"],
        exhausted=sums["exhausted"],
        rejected=dict(sorted(rejected.items())),
    )


def current_totals(store: Store, plan: Plan) -> Totals:
    """The totals of all finished shards. Reads one listing, the index, and the receipts missing from the index."""
    return totals_of(finished_entries(store, plan))


def finished_entries(store: Store, plan: Plan, save: bool = False) -> dict[int, IndexEntry]:
    """The index entries of all finished shards in order, for readers that do not check digests.

    Reads one listing, the index, and the receipts missing from the index; with `save`, these are added to the index.
    Raises UserError if recipe.yaml was changed since the shards were generated, or if one that is not indexed yet has
    another recipe: the ids of classes could be those of others, for instance.
    """
    finished, recipe = receipt_tags(store, len(plan)), plan.recipe.fingerprint()
    check_same_recipe(store, recipe, sorted(finished))
    index = ReceiptIndex(store, recipe)
    entries = index.entries(finished)
    if save:
        with contextlib.suppress(UserError):  # only a cache
            index.save()
    return entries
