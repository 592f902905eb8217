"""The public Python API; the package `factory` exports these names and loads them on first use."""

import threading
from collections.abc import Callable
from os import PathLike

from factory.config.batch_size import AUTO_BATCH
from factory.config.recipe import Recipe, load_recipe, make_recipe
from factory.config.sections import given_fields
from factory.dataset.masks import decode_label_png, decode_rle
from factory.dataset.reader import Dataset, DatasetSample, open_dataset
from factory.dataset.storage import Store
from factory.errors import LeaseHeldError, RunFailedError, TransientError, UserError
from factory.files.paths import address_text
from factory.generation.progress import Snapshot
from factory.generation.run import RunSummary
from factory.generation.run import generate as run

__all__ = [
    "Dataset",
    "DatasetSample",
    "LeaseHeldError",
    "Recipe",
    "RunFailedError",
    "RunSummary",
    "Snapshot",
    "TransientError",
    "UserError",
    "decode_label_png",
    "decode_rle",
    "generate",
    "load_recipe",
    "make_recipe",
    "open_dataset",
]

_generating = threading.Lock()
"""Held while a dataset is generated: a process has one connection to Ray, and one standard output."""


def generate(
    recipe: Recipe,
    shards: str | PathLike[str],
    *,
    extend: bool = False,
    force: bool = False,
    on_progress: Callable[[Snapshot], None] | None = None,
) -> RunSummary:
    """Generate a dataset, or resume one.

    Committed shards are kept, and the same recipe gives the same bytes. The function returns when the dataset is
    complete, or when only shards are left that failed repeatedly. It can be called from any thread, but a process
    generates one dataset at a time.

    Args:
        recipe: The settings of the dataset; see `make_recipe`.
        shards: Folder or URL (s3://, gs://, az://) of the dataset.
        extend: Extend an existing dataset to a larger `n`; its samples are kept.
        force: Take over the dataset from another process that is working on it.
        on_progress: Called with a snapshot of the run when it starts, at least every half second while it generates,
            and when it ends. An exception that the function raises ends the run; call `generate` again to resume.

    Returns:
        The totals of the dataset, and the `exit_code` with which `factory generate` would end.

    Raises:
        UserError: The input is invalid. Most problems are found before anything is written.
        RunFailedError: The workers cannot start.
        TransientError: The store or the cluster does not respond, or the disk is full; call the function again later.
        LeaseHeldError: Another process is working on the dataset.
        KeyboardInterrupt: Ctrl-C or SIGTERM, in the main thread only; the shards in progress have been committed or
            discarded.
    """
    if not isinstance(recipe, Recipe):
        raise UserError(
            f"the recipe must be a factory.Recipe, got a {type(recipe).__name__}; make one with factory.make_recipe."
        )
    recipe = _validated(recipe)
    if on_progress is not None and not callable(on_progress):
        raise UserError(f"on_progress must be a function of a factory.Snapshot, got a {type(on_progress).__name__}.")
    store = Store(address_text(shards), recipe.store)
    if not _generating.acquire(blocking=False):
        raise UserError(
            f"{store.address} cannot be generated now, because this process is generating another dataset; call "
            f"factory.generate again when it has finished, or use another process."
        )
    try:
        return run(recipe, store, extend, on_progress or (lambda snapshot: None), force)
    finally:
        _generating.release()


def _validated(recipe: Recipe) -> Recipe:
    """Check a recipe again: `model_copy(update=...)` of Pydantic accepts any field and any value."""
    fields = given_fields(recipe)
    if recipe.batch == AUTO_BATCH:
        fields["batch"] = "auto"
    return make_recipe(fields)
