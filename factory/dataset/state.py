"""A set as a whole: begun with a recipe, resumed or extended only by the same one, finished with a statement."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from factory.config.plan import Plan
from factory.config.recipe import Recipe, canonical, differences, make_recipe, parse_recipe
from factory.dataset.card import card
from factory.dataset.lease import LEASE
from factory.dataset.receipt_index import IndexEntry, ReceiptIndex
from factory.dataset.receipts import Receipt, read_receipt, tags
from factory.dataset.storage import Store
from factory.errors import UserError

RECIPE = "recipe.yaml"
STATEMENT = "dataset.json"
CARD = "README.md"
PROGRESS = "progress.json"
_READERS = 32
_WIDS = "wids-meta.json"
"""Written beside a dataset by earlier versions; webdataset has no reader of it since 1.0."""
_PATIENCE = 10.0


@dataclass(frozen=True)
class Totals:
    """Sums over receipts."""

    shards: int
    accepted: int
    planned: int
    attempts: int
    bytes: int
    exhausted: int
    rejected: dict[str, int]


def init_or_resume(store: Store, recipe: Recipe, extend: bool = False) -> Recipe:
    """Claim an empty place for a recipe, or check that what is there was begun with the same one.

    A dataset of which no shard is finished has nothing to lose, and is started over where the recipe is another.
    Returns the recipe of the set: of an extended one, it knows the sizes that the set had before. UserError names what
    differs.
    """
    before = store.get(RECIPE)
    if before is None:
        _refuse_foreign(store)
        if not store.create(RECIPE, recipe.to_yaml().encode()):
            return init_or_resume(store, recipe, extend)
        return recipe
    old = recipe_of(store)
    recipe = recipe.model_copy(update={"format": old.format})  # A dataset keeps the format that it was begun with.
    changed = differences(old, recipe)
    if changed and not store.list("receipts"):
        _start_over(store, recipe, before)
        return init_or_resume(store, recipe, extend)
    if changed:
        raise UserError(
            f"{store.address} was begun with another recipe: {'; '.join(changed)}. Give the same options to resume it, "
            f"or another --shards to begin anew."
        )
    if recipe.n == old.n:
        return old.model_copy(update={"engine": recipe.engine, "store": recipe.store})
    if recipe.n < old.n:
        raise UserError(f"{store.address} was begun with n = {old.n}; a set does not shrink to {recipe.n}.")
    if not extend:
        raise UserError(f"{store.address} was begun with n = {old.n}; to make it {recipe.n}, add --extend.")
    mine = {"engine": recipe.engine, "store": recipe.store}
    longer = old.model_copy(update={"n": recipe.n, "earlier": (*old.earlier, old.n), **mine})
    if not store.compare_and_swap(RECIPE, longer.to_yaml().encode(), before):
        return init_or_resume(store, recipe, extend)
    return longer


def _start_over(store: Store, recipe: Recipe, before: bytes) -> None:
    """Replace a recipe of which no shard was finished, and delete what its workers left without a receipt."""
    for folder in ("train", "manifest", "quarantine", "index"):
        for name in store.list(folder):
            store.delete(name)
    store.compare_and_swap(RECIPE, recipe.to_yaml().encode(), before)


def existing_recipe(store: Store) -> Recipe | None:
    """The recipe of what is there; None for an empty place. UserError for other files, or a broken recipe."""
    if store.get(RECIPE) is None:
        _refuse_foreign(store)
        return None
    return recipe_of(store)


def recipe_of(store: Store) -> Recipe:
    """The recipe of a set; UserError where there is no set, or its recipe is broken."""
    data = store.get(RECIPE)
    where = f"{store.address.rstrip('/')}/{RECIPE}"
    if data is None:
        raise UserError(f"{store.address} holds no set: there is no {RECIPE}. Make one with `factory generate`.")
    return make_recipe(parse_recipe(data.decode(errors="replace"), where), where)


def _refuse_foreign(store: Store) -> None:
    foreign = [name for name in store.entries("", most=10) if name not in (LEASE, ".lock")][:3]
    if foreign:
        raise UserError(
            f"{store.address} is not empty and holds no {RECIPE}, but {', '.join(foreign)}; give an empty or new place."
        )


def receipts(store: Store, numbers: list[int]) -> Iterator[Receipt]:
    """The receipts of some shards, several read at a time; UserError names one that is broken."""

    def read(number: int) -> Receipt | None:
        try:
            return read_receipt(store, number)
        except ValueError as error:
            raise UserError(
                f"the receipt of shard {number} is broken ({error}); repair the dataset with `factory verify --repair`."
            ) from error

    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(numbers), 1000):
            yield from (row for row in readers.map(read, numbers[start : start + 1000]) if row is not None)


def totals(rows: Mapping[int, IndexEntry]) -> Totals:
    """Sums over the receipts of some shards."""
    sums: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for row in rows.values():
        sums.update(
            shards=1,
            accepted=row.accepted,
            planned=row.planned,
            attempts=row.attempts,
            bytes=row.bytes,
            exhausted=row.exhausted,
        )
        rejected.update(row.rejected)
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
    """What is done of a plan: one listing, the index, and the receipts that it does not know yet."""
    return totals(ReceiptIndex(store).rows(tags(store, len(plan))))


def write_statement(store: Store, recipe: Recipe) -> Totals:
    """Fold the receipts into dataset.json and the card, which are functions of the shards alone."""
    plan, index = Plan(recipe), ReceiptIndex(store)
    rows = index.rows(tags(store, len(plan)))
    numbers, sums = list(rows), totals(rows)
    _put(store, STATEMENT, statement(recipe, plan, sums))
    store.delete(_WIDS)
    _put_text(store, CARD, card(recipe, sums, numbers[-1] if numbers else 0))
    with contextlib.suppress(UserError):  # a cache, which is missed by nobody but the next reader's patience
        index.save()
    return sums


def statement(recipe: Recipe, plan: Plan, sums: Totals) -> dict[str, Any]:
    """What the set is, for readers that do not want to open it."""
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
            "seg.png": "palette picture: 0 background, category ids, 255 ignore",
        },
    }


def _put(store: Store, name: str, data: dict[str, Any]) -> None:
    _put_text(store, name, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _put_text(store: Store, name: str, content: str) -> None:
    text = content.encode()
    if store.get(name) != text:
        store.put(name, text)


def put_progress(store: Store, data: dict[str, Any]) -> None:
    """For other eyes; dropped where the store does not take it."""
    with contextlib.suppress(UserError):
        store.with_patience(_PATIENCE).put(PROGRESS, canonical(data) + b"\n")
