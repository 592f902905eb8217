"""Pin a recipe: fix the revisions of its models, so that every worker and every later run uses the same weights."""

from pathlib import Path

from factory.config.recipe import Recipe
from factory.config.sections import GeneratorRecipe, MaskRecipe
from factory.config.vocabulary import coco
from factory.errors import UserError
from factory.generation.components import SOURCES, check_source
from factory.generator.load import EMBEDDED, model_folder, pin_generator
from factory.grounder.folder import check_fits, grounder_folder, pin_grounder, read_config


def pin_recipe(recipe: Recipe, begun: Recipe | None = None) -> Recipe:
    """The recipe with the revisions of its models, and with all that a worker would find wrong said before.

    `begun` is the recipe of an unfinished dataset: the hub is not asked for what it has pinned already.
    """
    if begun is not None:
        recipe = _with_pins_of(recipe, begun)
    if recipe.real is None:
        check_source(recipe.masks.source)
    _check_embedded_classes(recipe)
    generator, masks = pin_generator(recipe.generator), recipe.masks
    if uses_detector(recipe):
        from factory.detector.load import with_pinned_detector

        masks = with_pinned_detector(recipe)
    if masks.source not in (*SOURCES, "labels"):
        masks = _pin_grounder_of(masks, generator)
    return recipe.model_copy(update={"generator": generator, "masks": masks})


def _with_pins_of(recipe: Recipe, begun: Recipe) -> Recipe:
    """The recipe with the pins of the dataset, for models of the hub that are the same in both.

    A new commit on the hub between two runs must not stop the second, and neither must a hub that cannot be reached.
    The files of a folder are looked at again: they may have been changed in place.
    """
    generator, masks = recipe.generator, recipe.masks
    same = generator.model == begun.generator.model and generator.model.count("/") == 1
    if generator.revision is None and same and model_folder(generator.model) is None:
        generator = generator.model_copy(update={"revision": begun.generator.revision})
    same = masks.detector == begun.masks.detector and masks.detector.count("/") == 1 and ":" not in masks.detector
    if masks.detector_revision is None and same and not Path(masks.detector).expanduser().exists():
        masks = masks.model_copy(update={"detector_revision": begun.masks.detector_revision})
    return recipe.model_copy(update={"generator": generator, "masks": masks})


def _pin_grounder_of(masks: MaskRecipe, generator: GeneratorRecipe) -> MaskRecipe:
    """The grounder's digest, and where it reads its features; UserError where it does not fit the model."""
    folder = grounder_folder(masks.source)
    config = read_config(folder)
    check_fits(masks.source, config, generator)
    where = {"capture": config.capture, "timesteps": (config.timestep,)}
    named = masks.source if masks.source == EMBEDDED else str(folder.absolute())
    return masks.model_copy(update={"source": named, "grounder_revision": pin_grounder(masks.source), **where})


def _check_embedded_classes(recipe: Recipe) -> None:
    """UserError where the embedded models are to make or find what they never saw."""
    embedded = [recipe.generator.model, *([recipe.masks.detector] if uses_detector(recipe) else [])]
    if "stickers" not in embedded:
        return
    for entry in recipe.vocabulary().classes:
        try:
            coco().resolve(entry.display)
        except UserError as error:
            raise UserError(
                f"{error} The embedded models know the 80 classes of COCO only; for others give --model a folder or a "
                f"hub id, with --masks attention."
            ) from None


def uses_detector(recipe: Recipe) -> bool:
    """Whether masks or filters ask the detector."""
    return recipe.masks.source == "detector" or recipe.filters.min_detector_iou is not None
