"""The files that describe a dataset, dataset.json and the card, which follow from its recipe and receipts."""

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from factory.config.plan import Plan
from factory.config.recipe import Recipe
from factory.dataset.card import card
from factory.dataset.receipt_index import IndexEntry, ReceiptIndex
from factory.dataset.receipts import receipt_tags
from factory.dataset.storage import Store
from factory.dataset.totals import Totals, totals_of
from factory.errors import UserError

DATASET_JSON = "dataset.json"
CARD = "README.md"


def write_description(store: Store, recipe: Recipe) -> Totals:
    """Write dataset.json and the card, which depend only on the recipe and the finished shards."""
    plan, index = Plan(recipe), ReceiptIndex(store, recipe.fingerprint())
    sums = _write(store, plan, index.entries(receipt_tags(store, len(plan))))
    with contextlib.suppress(UserError):  # only a cache
        index.save()
    return sums


def renew_description(store: Store, plan: Plan, entries: Mapping[int, IndexEntry]) -> None:
    """Write the files again if they exist, before a run that has shards to generate.

    Otherwise those of a dataset that is extended or repaired would call it complete until the end of the run, and after
    a run that was interrupted.
    """
    if store.get_derived(DATASET_JSON) is not None:
        _write(store, plan, entries)


def complete_description(store: Store, recipe: Recipe, confirm: Callable[[], None]) -> None:
    """Write the files if a run or repair was killed after its last shard, before it wrote them.

    If dataset.json is current, so is the card, which was written before it and may have been edited since. An
    unfinished dataset without the files is left to its run. `confirm` raises an error if the lease was lost.
    """
    plan = Plan(recipe)
    entries = ReceiptIndex(store, recipe.fingerprint()).entries(receipt_tags(store, len(plan)))
    stored = store.get_derived(DATASET_JSON)
    if stored != _text(plan, totals_of(entries)) and (stored is not None or len(entries) == len(plan)):
        confirm()
        _write(store, plan, entries)


def _write(store: Store, plan: Plan, entries: Mapping[int, IndexEntry]) -> Totals:
    """Write the files from the entries of the finished shards, in order; dataset.json last, which proves both."""
    sums = totals_of(entries)
    _put_if_changed(store, CARD, card(plan.recipe, sums, max(entries, default=0)).encode())
    _put_if_changed(store, DATASET_JSON, _text(plan, sums))
    return sums


def _text(plan: Plan, sums: Totals) -> bytes:
    """dataset.json, in ASCII, because programs may open it in the encoding of their locale."""
    return f"{json.dumps(description(plan.recipe, plan, sums), indent=1)}\n".encode()


def description(recipe: Recipe, plan: Plan, sums: Totals) -> dict[str, Any]:
    """The content of dataset.json: a summary for readers that do not open the shards."""
    return {
        "recipe": recipe.fingerprint(),
        "n": recipe.n,
        "samples": sums.accepted,
        "short": sums.exhausted,
        "complete": sums.shards == len(plan),
        "shards": sums.shards,
        "shards_planned": len(plan),
        "bytes": sums.bytes,
        "attempts": sums.attempts,
        "rejected": sums.rejected,
        "classes": [{"id": entry.id, "name": entry.name} for entry in recipe.vocabulary().classes],
        "members": {
            "jpg": "the image",
            "json": "COCO-style annotations and provenance",
            **({"latent.npy": "latent of the features, float16 (C, h, w)"} if recipe.oracle else {}),
            "seg.png": "palette image: 0 background, category ids, 255 ignore",
        },
    }


def _put_if_changed(store: Store, name: str, data: bytes) -> None:
    if store.get_derived(name) != data:
        store.put(name, data)
