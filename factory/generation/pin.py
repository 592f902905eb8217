"""Pins the model revisions of a recipe, so that every worker and every later run uses the same weights."""

from pathlib import Path

from factory.config.recipe import Recipe
from factory.config.sections import GeneratorRecipe, MaskRecipe
from factory.config.vocabulary import coco
from factory.detector.open_names import local_folder, parse_open_name
from factory.errors import UserError
from factory.generation.components import SOURCES, check_source
from factory.generator.load import EMBEDDED, model_folder, pin_generator
from factory.grounder.folder import check_fits, grounder_folder, pin_grounder, read_config


def pin_recipe(recipe: Recipe, existing: Recipe | None = None) -> Recipe:
    """The recipe with pinned model revisions. UserError if models are missing or do not fit the recipe.

    `existing` is the recipe of a dataset that is resumed: the hub is not queried for revisions that it already pins.
    """
    if existing is not None:
        recipe = _with_pins_of(recipe, existing)
    if recipe.real is None:
        check_source(recipe.masks.source)
    _check_embedded_classes(recipe)
    generator, masks = pin_generator(recipe.generator), recipe.masks
    if recipe.uses_detector():
        from factory.detector.load import with_pinned_detector

        masks = with_pinned_detector(recipe)
    if masks.source not in (*SOURCES, "labels"):
        masks = _pin_grounder_of(masks, generator)
    return recipe.model_copy(update={"generator": generator, "masks": masks})


def _with_pins_of(recipe: Recipe, existing: Recipe) -> Recipe:
    """The recipe with the pins of the dataset, for hub models that are the same in both.

    Neither a new commit on the hub nor an unreachable hub must prevent resuming. Local folders are pinned again,
    because their files may have changed in place.
    """
    generator, masks = recipe.generator, recipe.masks
    same = generator.model == existing.generator.model and generator.model.count("/") == 1
    if generator.revision is None and same and model_folder(generator.model) is None:
        generator = generator.model_copy(update={"revision": existing.generator.revision})
    same = masks.detector == existing.masks.detector and _is_on_hub(masks.detector)
    if masks.detector_revision is None and same:
        masks = masks.model_copy(update={"detector_revision": existing.masks.detector_revision})
    return recipe.model_copy(update={"generator": generator, "masks": masks})


def _is_on_hub(detector: str) -> bool:
    """Whether all models of a detector are hub models."""
    open_name = parse_open_name(detector)
    if open_name is not None:
        return all(local_folder(model) is None for model in open_name.models)
    return detector.count("/") == 1 and ":" not in detector and not Path(detector).expanduser().exists()


def _pin_grounder_of(masks: MaskRecipe, generator: GeneratorRecipe) -> MaskRecipe:
    """Pin the grounder's digest and the settings of its features. UserError if it does not fit the model."""
    folder = grounder_folder(masks.source)
    config = read_config(folder)
    check_fits(masks.source, config, generator)
    features = {"capture": config.capture, "timesteps": (config.timestep,)}
    source = masks.source if masks.source == EMBEDDED else str(folder.absolute())
    return masks.model_copy(update={"source": source, "grounder_revision": pin_grounder(masks.source), **features})


def _check_embedded_classes(recipe: Recipe) -> None:
    """UserError if the embedded models are asked for classes that they were not trained on."""
    embedded = [recipe.generator.model, *([recipe.masks.detector] if recipe.uses_detector() else [])]
    if "stickers" not in embedded:
        return
    for entry in recipe.vocabulary().classes:
        try:
            coco().resolve(entry.display)
        except UserError as error:
            raise UserError(
                f"{error} The embedded models know only the 80 COCO classes; for other classes, give --model a folder "
                f"or a hub id, and --masks attention or a --detector for any class, such as sam3:MODEL."
            ) from None
