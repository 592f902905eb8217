"""The recipe of a dataset: initialise a dataset with it, and resume or extend it with the same one."""

import functools
from collections.abc import Callable
from itertools import islice
from typing import Any

from factory.config.differences import changed_sizes, differences
from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe, parse_recipe
from factory.dataset.lease import LEASE
from factory.dataset.ordered_map import ordered_map
from factory.dataset.receipts import check_same_recipe, finished_shards
from factory.dataset.storage import Store
from factory.dataset.storage_folder import LOCK
from factory.errors import UserError, command, first_few

RECIPE = "recipe.yaml"
_LOOKED_INTO = 50
"""Folders at an address without a recipe in which datasets are looked for, to name them in the message."""
_READERS = 16


def init_or_resume(
    store: Store, recipe: Recipe, extend: bool = False, confirm: Callable[[], None] = lambda: None
) -> Recipe:
    """Initialise a dataset at an empty address, or check that an existing one has the same recipe.

    A dataset without a finished shard is reset if the recipe or its size differs; `confirm` raises an error if the
    lease was lost, before each deletion. Returns the recipe of the dataset; for an extended dataset, it includes the
    earlier sizes. Raises UserError with the differences, or if recipe.yaml was edited since.
    """
    before = store.get(RECIPE)
    if before is None:
        _refuse_foreign(store)
        new = recipe.to_yaml().encode()
        return recipe if store.create_or_get(RECIPE, new) == new else init_or_resume(store, recipe, extend, confirm)
    old = recipe_of(store)
    recipe = recipe.model_copy(update={"format": old.format})  # A dataset keeps its format.
    changed = differences(old, recipe) + changed_sizes(old, recipe)
    if (changed or recipe.n != old.n) and not store.list("receipts"):
        _reset(store, recipe, before, confirm)
        return init_or_resume(store, recipe, extend, confirm)
    if changed:
        check_same_recipe(store, old.fingerprint(), finished_shards(store, Plan(old)))
        raise UserError(
            f"{store.address} was created with a different recipe: {'; '.join(changed)}. Give the same options to "
            f"resume it, run {command('generate', '--shards', store.address)} to resume it with its own recipe, or "
            f"give another --shards to create a new dataset."
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
        return init_or_resume(store, recipe, extend, confirm)
    return extended


def _reset(store: Store, recipe: Recipe, before: bytes, confirm: Callable[[], None]) -> None:
    """Replace the recipe of a dataset without finished shards, and delete the files that its workers left behind."""
    for folder in ("train", "manifest", "quarantine", "index", "rejected"):
        for name in store.list(folder):
            confirm()
            store.delete(name)
    store.compare_and_swap(RECIPE, recipe.to_yaml().encode(), before)


def existing_recipe(store: Store) -> Recipe | None:
    """The recipe of an existing dataset; None if the address is empty. Raises UserError for a non-dataset folder."""
    if store.get(RECIPE) is None:
        _refuse_foreign(store)
        if store.get(RECIPE) is None:
            return None
    return recipe_of(store)


def recipe_of(store: Store, writer: str = "factory generate") -> Recipe:
    """The recipe of a dataset; raises UserError if there is no dataset or its recipe is invalid.

    `writer` is the command that the message names for creating one.
    """
    return _recipe_in(*_contents(store, writer))


def fields_of(store: Store) -> dict[str, Any]:
    """The fields that the recipe of a dataset contains, for `make_recipe`; raises the errors of `recipe_of`."""
    contents = _contents(store)
    _recipe_in(*contents)
    return parse_recipe(*contents)


def _contents(store: Store, writer: str = "factory generate") -> tuple[str, str]:
    """(text of the recipe of a dataset, its address)."""
    data = store.get(RECIPE)
    if data is None:
        raise UserError(f"{store.address} is not a dataset: {_why_not(store, writer)}.")
    where = store.address_of(RECIPE)
    return _text(data, where), where


@functools.lru_cache(maxsize=1)
def _recipe_in(text: str, where: str) -> Recipe:
    """Cached, because a run reads the recipe several times, and custom prompts can make it large."""
    return make_recipe(parse_recipe(text, where), where)


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is damaged or not UTF-8 text ({error}); restore it, or save it as UTF-8.") from error


def _why_not(store: Store, writer: str) -> str:
    """Why an address is not a dataset, and what to do; a mistyped path is the most frequent reason."""
    create = f"Create one with `{writer}`"
    if store.folder is not None and not store.folder.is_dir():
        return f"{'it is a file, not a folder' if store.folder.exists() else 'there is no such folder'}. {create}"
    below = _datasets_below(store)
    if not below:
        return f"it has no {RECIPE}. {create}"
    return (
        f"it has no {RECIPE}, but contains {'the datasets' if below[1:] else 'the dataset'} {first_few(below)}; give "
        f"{store.address_of(below[0])}{' or another one' if below[1:] else ''}"
    )


def _datasets_below(store: Store) -> list[str]:
    """The datasets in the last folders by name, last first: those of nights, or of a folder that holds datasets."""
    folders = list(reversed(store.folders()))[:_LOOKED_INTO]
    recipes = [f"{folder}/{below}{RECIPE}" for folder in folders for below in ("", "dataset/")]

    def exists(name: str) -> bool:
        try:
            return store.get(name) is not None
        except UserError:  # a folder that cannot be read, for instance
            return False

    found = ordered_map(exists, recipes, _READERS, ahead=_READERS, name="recipes")
    return [name.removesuffix(f"/{RECIPE}") for name, is_there in found if is_there]


def _refuse_foreign(store: Store) -> None:
    if store.folder is not None and store.folder.exists() and not store.folder.is_dir():
        raise UserError(f"{store.address} is a file, not a folder; give a new or empty folder.")
    names = (name for name in store.entries("", limit=10) if name != LEASE and not name.startswith(LOCK))
    foreign = list(islice(names, 3))
    # Another driver may have created the dataset since the caller looked for its recipe.
    if foreign and store.get(RECIPE) is None:
        raise UserError(
            f"{store.address} is not empty and not a dataset: it has no {RECIPE}, but contains {', '.join(foreign)}; "
            f"give a new or empty folder."
        )
