"""The state of a dataset: initialise it with a recipe, resume or extend it with the same one, and summarise it."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from factory.config.differences import changed_sizes, differences
from factory.config.plan import Plan
from factory.config.recipe import Recipe, canonical, make_recipe, parse_recipe
from factory.dataset.card import card
from factory.dataset.lease import LEASE
from factory.dataset.receipt_index import IndexEntry, ReceiptIndex
from factory.dataset.receipts import CorruptReceiptError, Receipt, corrupt_receipt, read_receipt, tags
from factory.dataset.storage import Store
from factory.dataset.storage_folder import LOCK
from factory.errors import UserError
from factory.files.decode import decode_json

RECIPE = "recipe.yaml"
STATEMENT = "dataset.json"
CARD = "README.md"
PROGRESS = "progress.json"
_READERS = 32
_WIDS = "wids-meta.json"
"""Written by earlier versions; webdataset no longer reads it since 1.0."""
_PROGRESS_PATIENCE = 10.0


@dataclass(frozen=True)
class Totals:
    """Totals over receipts; `exhausted` counts samples that exhausted their attempts."""

    shards: int
    accepted: int
    planned: int
    attempts: int
    bytes: int
    exhausted: int
    rejected: dict[str, int]


def init_or_resume(store: Store, recipe: Recipe, extend: bool = False) -> Recipe:
    """Initialise a dataset at an empty address, or check that an existing one has the same recipe.

    A dataset without a finished shard is reset if the recipe or its size differs. Returns the recipe of the dataset;
    for an extended dataset, it includes the earlier sizes. Raises UserError with the differences.
    """
    before = store.get(RECIPE)
    if before is None:
        _refuse_foreign(store)
        if not store.create(RECIPE, recipe.to_yaml().encode()):
            return init_or_resume(store, recipe, extend)
        return recipe
    old = recipe_of(store)
    recipe = recipe.model_copy(update={"format": old.format})  # A dataset keeps its format.
    changed = differences(old, recipe) + changed_sizes(old, recipe)
    if (changed or recipe.n != old.n) and not store.list("receipts"):
        _reset(store, recipe, before)
        return init_or_resume(store, recipe, extend)
    if changed:
        raise UserError(
            f"{store.address} was created with a different recipe: {'; '.join(changed)}. Give the same options to "
            f"resume it, or another --shards to create a new dataset."
        )
    if recipe.n == old.n:
        return old.model_copy(update={"engine": recipe.engine, "store": recipe.store})
    if recipe.n < old.n:
        raise UserError(f"{store.address} was created with n = {old.n}; a dataset cannot shrink to {recipe.n}.")
    if not extend:
        raise UserError(f"{store.address} was created with n = {old.n}; add --extend to extend it to {recipe.n}.")
    current = {"engine": recipe.engine, "store": recipe.store}
    extended = old.model_copy(update={"n": recipe.n, "earlier": (*old.earlier, old.n), **current})
    if not store.compare_and_swap(RECIPE, extended.to_yaml().encode(), before):
        return init_or_resume(store, recipe, extend)
    return extended


def _reset(store: Store, recipe: Recipe, before: bytes) -> None:
    """Replace the recipe of a dataset without finished shards, and delete the files that its workers left behind."""
    for folder in ("train", "manifest", "quarantine", "index", "rejected"):
        for name in store.list(folder):
            store.delete(name)
    store.compare_and_swap(RECIPE, recipe.to_yaml().encode(), before)


def existing_recipe(store: Store) -> Recipe | None:
    """The recipe of an existing dataset; None if the address is empty. Raises UserError for a non-dataset folder."""
    if store.get(RECIPE) is None:
        _refuse_foreign(store)
        if store.get(RECIPE) is None:
            return None
    return recipe_of(store)


def recipe_of(store: Store) -> Recipe:
    """The recipe of a dataset; raises UserError if there is no dataset or its recipe is invalid."""
    data = store.get(RECIPE)
    where = f"{store.address.rstrip('/')}/{RECIPE}"
    if data is None:
        raise UserError(f"{store.address} is not a dataset: it has no {RECIPE}. Create one with `factory generate`.")
    return make_recipe(parse_recipe(data.decode(errors="replace"), where), where)


def _refuse_foreign(store: Store) -> None:
    names = (name for name in store.entries("", limit=10) if name != LEASE and not name.startswith(LOCK))
    foreign = list(islice(names, 3))
    # Another driver may have created the dataset since the caller looked for its recipe.
    if foreign and store.get(RECIPE) is None:
        raise UserError(
            f"{store.address} is not empty and not a dataset: it has no {RECIPE}, but contains {', '.join(foreign)}; "
            f"give a new or empty folder."
        )


def receipts(store: Store, numbers: list[int]) -> Iterator[Receipt]:
    """Read the receipts of some shards concurrently; raises UserError for a corrupt one."""

    def read(number: int) -> Receipt | None:
        try:
            return read_receipt(store, number)
        except CorruptReceiptError as error:
            raise corrupt_receipt(number, error) from error

    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(numbers), 1000):
            batch = readers.map(read, numbers[start : start + 1000])
            yield from (receipt for receipt in batch if receipt is not None)


def totals(entries: Mapping[int, IndexEntry]) -> Totals:
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


def state(store: Store, plan: Plan) -> Totals:
    """The totals of all finished shards. Reads one listing, the index, and the receipts missing from the index."""
    return totals(ReceiptIndex(store).entries(tags(store, len(plan))))


def write_statement(store: Store, recipe: Recipe) -> Totals:
    """Write dataset.json and the card, which depend only on the recipe and the finished shards."""
    plan, index = Plan(recipe), ReceiptIndex(store)
    entries = index.entries(tags(store, len(plan)))
    numbers, sums = list(entries), totals(entries)
    summary = json.dumps(statement(recipe, plan, sums), indent=1, ensure_ascii=False)
    _put_if_changed(store, STATEMENT, f"{summary}\n")
    store.delete(_WIDS)
    _put_if_changed(store, CARD, card(recipe, sums, numbers[-1] if numbers else 0))
    with contextlib.suppress(UserError):  # only a cache
        index.save()
    return sums


def statement(recipe: Recipe, plan: Plan, sums: Totals) -> dict[str, Any]:
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


def _put_if_changed(store: Store, name: str, text: str) -> None:
    data = text.encode()
    if store.get(name) != data:
        store.put(name, data)


def read_progress(store: Store) -> dict[str, Any]:
    """The content of progress.json; empty if there is none or it is invalid."""
    data = store.get(PROGRESS) or b"{}"
    try:
        return dict(decode_json(data))
    except (ValueError, TypeError):
        return {}


def put_progress(store: Store, data: dict[str, Any]) -> None:
    """Write progress.json for monitoring; failures are ignored."""
    with contextlib.suppress(UserError):
        store.with_patience(_PROGRESS_PATIENCE).put(PROGRESS, canonical(data) + b"\n")
