"""The parts of a worker, put together as the recipe says."""

from dataclasses import dataclass

from factory.config.recipe import Recipe
from factory.detector.interface import Detector, DetectorGrounder
from factory.detector.oracle import OracleGrounder
from factory.generator.interface import Generator
from factory.grounder.folder import check_fits, grounder_folder
from factory.grounder.interface import Grounder

SOURCES = ("attention", "detector")
"""Where masks come from without a trained grounder; any other source is one."""


@dataclass(frozen=True)
class Components:
    """What a worker holds: models loaded once. `judge` is the detector whose opinion the filters ask, if they do."""

    generator: Generator
    grounder: Grounder
    judge: Detector | None = None


def load_components(recipe: Recipe, device: str = "cpu", detector: Detector | None = None) -> Components:
    """Load the models of a recipe. `detector` stands in for an own one: a pool's, say."""
    from factory.generator.pipeline import PipelineGenerator

    if recipe.real is not None:
        return _real(recipe, device)
    check_source(recipe.masks.source)
    asked = recipe.filters.min_detector_iou is not None
    if detector is None and (asked or recipe.masks.source == "detector"):
        from factory.detector.load import open_detector

        detector = open_detector(recipe, device)
    grounder = _grounder(recipe, detector, device)
    return Components(PipelineGenerator(recipe, device, grounder.needs), grounder, detector if asked else None)


def _real(recipe: Recipe, device: str) -> Components:
    from factory.generator.inversion import InvertingGenerator
    from factory.grounder.labels import LabelGrounder

    return Components(InvertingGenerator(recipe, device), LabelGrounder())


def check_source(source: str) -> None:
    """UserError for a source of masks that there is not."""
    if source not in SOURCES:
        grounder_folder(source)


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
