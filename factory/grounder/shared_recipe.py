"""The recipe that several oracle datasets share."""

from collections.abc import Sequence
from typing import Any

from factory.config.recipe import Recipe
from factory.errors import UserError
from factory.generator.load import check_unchanged, model_folder
from factory.grounder.data import OracleDataset


def shared_recipe(datasets: Sequence[OracleDataset]) -> Recipe:
    """The recipe of the first dataset.

    Raises UserError unless all datasets have the same features and classes, and were made with the current model and
    LoRA, of which the digests are computed.
    """
    check_same_kind(datasets)
    first = datasets[0].recipe
    check_unchanged(first.generator, datasets[0].store.address)
    return first


def check_same_kind(datasets: Sequence[OracleDataset]) -> None:
    """Raise UserError unless all datasets have the same features and classes, and their model exists."""
    for dataset in datasets[1:]:
        if _features_and_classes(dataset) != _features_and_classes(datasets[0]):
            raise UserError(
                f"{dataset.store.address} is another kind of oracle dataset than {datasets[0].store.address}: model, "
                f"noise level or seed, classes or split differ; train on datasets that share them."
            )
    model_folder(datasets[0].recipe.generator.model)


def _features_and_classes(dataset: OracleDataset) -> tuple[Any, ...]:
    recipe = dataset.recipe
    settings = recipe.generator
    generator = (settings.model, settings.revision, settings.adapter, settings.width, settings.height)
    return generator, recipe.masks.noise_level, recipe.masks.noise_seed, recipe.classes, recipe.oracle
