"""The public Python API; the package `factory` exports these names and loads them on first use."""

from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING

from factory.config.recipe import Recipe, make_recipe
from factory.dataset.masks import decode_label_png, decode_rle
from factory.dataset.reader import Dataset, DatasetSample, open_dataset
from factory.errors import LeaseHeldError, RunFailedError, TransientError, UserError
from factory.files.paths import path_text

if TYPE_CHECKING:
    from factory.generation.progress import Snapshot
    from factory.generation.run import RunSummary

__all__ = [
    "Dataset",
    "DatasetSample",
    "LeaseHeldError",
    "Recipe",
    "RunFailedError",
    "TransientError",
    "UserError",
    "decode_label_png",
    "decode_rle",
    "generate",
    "make_recipe",
    "open_dataset",
]


def generate(
    recipe: Recipe,
    shards: str | PathLike[str],
    *,
    extend: bool = False,
    force: bool = False,
    on_progress: "Callable[[Snapshot], None] | None" = None,
) -> "RunSummary":
    """Generate a dataset, or resume one.

    Committed shards are kept, and the same recipe gives the same bytes. The function returns when the dataset is
    complete, or when only shards are left that failed repeatedly.

    Args:
        recipe: The settings of the dataset; see `make_recipe`.
        shards: Folder or URL (s3://, gs://, az://) of the dataset.
        extend: Extend an existing dataset to a larger `n`; its samples are kept.
        force: Take over the dataset from another process that is working on it.
        on_progress: Called with a snapshot of the run at least every half second.

    Returns:
        The totals of the dataset, and the `exit_code` with which `factory generate` would end.

    Raises:
        UserError: The input is invalid. Most problems are found before anything is written.
        RunFailedError: The workers cannot start.
        TransientError: The store or the cluster does not respond, or the disk is full; call the function again later.
        LeaseHeldError: Another process is working on the dataset.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the shards in progress have been committed or discarded.
    """
    from factory.dataset.storage import Store
    from factory.generation.run import generate as run

    if not isinstance(recipe, Recipe):
        raise UserError(
            f"the recipe must be a factory.Recipe, got a {type(recipe).__name__}; make one with factory.make_recipe."
        )
    store = Store(path_text(shards, "the address of a dataset"), recipe.store)
    return run(recipe, store, extend, on_progress or (lambda snapshot: None), force)
