"""The recipe that several oracle datasets share."""

from collections.abc import Sequence
from typing import Any

from factory.config.recipe import Recipe
from factory.errors import UserError, shortened
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
    expected = _features_and_classes(datasets[0])
    for dataset in datasets[1:]:
        actual = _features_and_classes(dataset)
        differences = [
            f"{name} {shortened(str(value), 40)} instead of {shortened(str(expected[name]), 40)}"
            for name, value in actual.items()
            if value != expected[name]
        ]
        if differences:
            raise UserError(
                f"{dataset.store.address} cannot be combined with {datasets[0].store.address}: it has the "
                f"{', the '.join(differences)}; train on datasets in which these are the same."
            )
    model_folder(datasets[0].recipe.generator.model)


def _features_and_classes(dataset: OracleDataset) -> dict[str, Any]:
    """What the datasets of one training share, by the names in messages."""
    recipe = dataset.recipe
    generator, oracle = recipe.generator, recipe.oracle
    assert oracle is not None
    return {
        "model": generator.model,
        "model revision": generator.revision,
        "LoRA": generator.adapter,
        "image width": generator.width,
        "image height": generator.height,
        "noise level": recipe.masks.noise_level,
        "noise seed": recipe.masks.noise_seed,
        "classes": recipe.classes,
        "split": oracle.split,
        "seen classes": ", ".join(oracle.seen),
    }
