"""Pins the model revisions of a recipe, so that every worker and every later run uses the same weights."""

from typing import Any

from factory.config.recipe import Recipe
from factory.config.sections import GeneratorRecipe, MaskRecipe
from factory.config.stickers import EMBEDDED_MODELS, check_embedded_classes
from factory.detector.open_names import parse_open_name, pin_open_name
from factory.errors import UserError
from factory.files.paths import expanded
from factory.generation.components import SOURCES, check_source
from factory.generator.families import default_read_blocks
from factory.generator.layout import blocks_of, family_in, read_config, read_index
from factory.generator.load import config_folder, model_folder, pin_generator, pin_revision, pinned_name
from factory.generator.lora import pin_lora
from factory.grounder.folder import check_fits, grounder_folder, pin_grounder, read_grounder_config


def pin_recipe(recipe: Recipe, existing: Recipe | None = None) -> Recipe:
    """The recipe with pinned model revisions. UserError if models are missing or do not fit the recipe or its pins.

    `existing` is the recipe of a dataset that is resumed: the hub is not queried for revisions that it already pins.
    """
    _check_pins(recipe)
    if existing is not None:
        recipe = _with_pins_of(recipe, existing)
    if recipe.real is None:
        check_source(recipe.masks.source)
    if recipe.generator.model in EMBEDDED_MODELS:
        check_embedded_classes(recipe.vocabulary())
    generator, masks = pin_generator(recipe.generator), recipe.masks
    if recipe.uses_detector():
        from factory.detector.load import with_pinned_detector

        masks = with_pinned_detector(recipe)
    if masks.source not in (*SOURCES, "labels"):
        masks = _pin_grounder_of(masks, generator)
    elif masks.source == "attention" or recipe.oracle is not None:
        masks = _pin_reading(masks, generator)
    return recipe.model_copy(update={"generator": generator, "masks": masks})


def _check_pins(recipe: Recipe) -> None:
    """UserError if the content of a local text-to-image model, LoRA or grounder differs from its pin.

    Hub models are loaded at their pinned commit, and `with_pinned_detector` checks the detector.
    """
    generator, masks = recipe.generator, recipe.masks
    if generator.revision is not None and model_folder(generator.model) is not None:
        found = pin_revision(generator.model, generator.revision)
        _check_pin("text-to-image model", generator.model, generator.revision, found)
    if generator.lora is not None and generator.lora_revision is not None:
        found = pin_lora(generator).get("lora_revision", generator.lora_revision)
        _check_pin("LoRA", generator.lora, generator.lora_revision, found)
    if masks.grounder_revision is not None and masks.source not in (*SOURCES, "labels"):
        _check_pin("grounder", masks.source, masks.grounder_revision, pin_grounder(masks.source))


def _check_pin(kind: str, name: str, pinned: str, found: str) -> None:
    if found != pinned:
        raise UserError(
            f"the recipe pins the {kind} {name} as {pinned}, but its content is now {found}; restore the pinned one, "
            f"or remove the revision from the recipe and start a new dataset."
        )


def _with_pins_of(recipe: Recipe, existing: Recipe) -> Recipe:
    """The recipe with the commits that the dataset pins, for hub models that are the same in both.

    Neither a new commit on the hub nor an unreachable hub may prevent resuming. Local folders and files are pinned
    again, because they may have changed.
    """
    generator, masks = recipe.generator, recipe.masks
    if generator.revision is None and pinned_name(generator.model) == existing.generator.model:
        found = pin_revision(generator.model, existing.generator.revision)
        generator = generator.model_copy(update={"revision": found})
    if generator.lora_revision is None and generator.lora == existing.generator.lora and _is_on_hub(generator.lora):
        generator = generator.model_copy(update={"lora_revision": existing.generator.lora_revision})
    if masks.detector_revision is None and masks.detector == existing.masks.detector:
        revision = _detector_revision(masks.detector, existing.masks.detector_revision)
        masks = masks.model_copy(update={"detector_revision": revision})
    return recipe.model_copy(update={"generator": generator, "masks": masks})


def _detector_revision(detector: str, pinned: str | None) -> str | None:
    """The revision of a detector with the commits of `pinned`; None if it has no model of the hub."""
    open_name = parse_open_name(detector)
    if open_name is not None:
        return None if pinned is None else pin_open_name(open_name, pinned)
    return pinned if detector.count("/") == 1 and ":" not in detector and _is_on_hub(detector) else None


def _is_on_hub(name: str | None) -> bool:
    return name is not None and not expanded(name).exists()


def _pin_grounder_of(masks: MaskRecipe, generator: GeneratorRecipe) -> MaskRecipe:
    """Pin the grounder's digest and the settings of its features. UserError if it does not fit the model."""
    folder = grounder_folder(masks.source)
    config = read_grounder_config(folder)
    check_fits(masks.source, config, generator)
    features = {"noise_level": config.noise_level, "noise_seed": config.noise_seed}
    source = masks.source if masks.source in EMBEDDED_MODELS else str(folder.absolute())
    return masks.model_copy(update={"source": source, "grounder_revision": pin_grounder(masks.source), **features})


def _pin_reading(masks: MaskRecipe, generator: GeneratorRecipe) -> MaskRecipe:
    """Pin the noise level and the blocks of the model's family, unless they were given."""
    folder = config_folder(generator)
    family = family_in(read_index(folder))
    count = blocks_of(family, read_config(folder, family.denoiser))
    changes: dict[str, Any] = {} if masks.noise_level is not None else {"noise_level": family.noise_level}
    if masks.source == "attention" and masks.blocks is None and count and not family.is_unet:
        changes["blocks"] = default_read_blocks(family, count)
    return masks.model_copy(update=changes)
