"""Loads the models of a worker as the recipe specifies."""

from dataclasses import dataclass

from factory.config.recipe import Recipe
from factory.detector.interface import Detector, DetectorGrounder
from factory.detector.oracle import OracleGrounder
from factory.errors import UserError
from factory.generator.interface import Generator
from factory.grounder.folder import check_fits, grounder_folder
from factory.grounder.interface import Grounder

SOURCES = ("attention", "detector")
"""The mask sources that are not a trained grounder; any other value names one."""


@dataclass(frozen=True)
class Components:
    """The models of a worker, loaded once. `judge` is the detector that the filters use, if any."""

    generator: Generator
    grounder: Grounder
    judge: Detector | None = None


def load_components(recipe: Recipe, device: str = "cpu", detector: Detector | None = None) -> Components:
    """Load the models of a recipe. A given `detector`, such as that of a pool, replaces the recipe's detector."""
    from factory.generator.pipeline import PipelineGenerator

    if recipe.real is not None:
        return _inverting(recipe, device)
    check_source(recipe.masks.source)
    judged = recipe.filters.min_detector_iou is not None
    if detector is None and (judged or recipe.masks.source == "detector"):
        from factory.detector.load import open_detector

        detector = open_detector(recipe, device)
    grounder = _grounder(recipe, detector, device)
    return Components(PipelineGenerator(recipe, device, grounder.needs), grounder, detector if judged else None)


def _inverting(recipe: Recipe, device: str) -> Components:
    from factory.generator.inversion import InvertingGenerator
    from factory.grounder.labels import LabelGrounder

    return Components(InvertingGenerator(recipe, device), LabelGrounder())


def check_source(source: str) -> None:
    """UserError if the mask source does not exist."""
    if source in SOURCES:
        return
    try:
        grounder_folder(source)
    except UserError as error:
        from factory.detector.load import KINDS

        if source.partition(":")[0] in KINDS:
            raise UserError(
                f"{source} is a detector, not a source of masks; give --masks detector --detector {source}, or "
                f"masks.source and masks.detector in a recipe."
            ) from error
        raise UserError(f"unknown source of masks {source!r}: it is not {' or '.join(SOURCES)}, and {error}") from error


def _grounder(recipe: Recipe, detector: Detector | None, device: str) -> Grounder:
    if recipe.masks.source == "detector":
        assert detector is not None
        if recipe.oracle is not None:
            return OracleGrounder(detector, recipe.masks)
        return DetectorGrounder(detector, recipe.masks)
    if recipe.masks.source != "attention":
        return _trained(recipe, device)
    from factory.grounder.attention import AttentionGrounder

    return AttentionGrounder(recipe.masks)


def _trained(recipe: Recipe, device: str) -> Grounder:
    from factory.grounder.trained import TrainedGrounder

    grounder = TrainedGrounder(grounder_folder(recipe.masks.source), device, recipe.generator.threads)
    check_fits(recipe.masks.source, grounder.config, recipe.generator)
    return grounder
