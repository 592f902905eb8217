"""The parts of a worker, put together as the recipe says."""

from dataclasses import dataclass

from factory.detector.interface import Detector, DetectorGrounder
from factory.errors import UserError
from factory.generator.interface import Generator
from factory.grounder.interface import Grounder
from factory.recipe import Recipe

SOURCES = ("attention", "detector")


@dataclass(frozen=True)
class Components:
    """What a worker holds: models loaded once. `judge` is the detector whose opinion the filters ask, if they do."""

    generator: Generator
    grounder: Grounder
    judge: Detector | None = None


def load_components(recipe: Recipe, device: str = "cpu", detector: Detector | None = None) -> Components:
    """Load the models of a recipe. `detector` stands in for an own one: a pool's, say."""
    from factory.generator.pipeline import PipelineGenerator

    check_source(recipe.masks.source)
    asked = recipe.filters.min_detector_iou is not None
    if detector is None and (asked or recipe.masks.source == "detector"):
        from factory.detector.embedded import EmbeddedDetector

        detector = EmbeddedDetector(recipe, device)
    grounder = _grounder(recipe, detector)
    return Components(PipelineGenerator(recipe, device, grounder.needs), grounder, detector if asked else None)


def check_source(source: str) -> None:
    """UserError for a source of masks that there is not."""
    if source not in SOURCES:
        raise UserError(f"there are no masks from {source!r}; --masks takes {' or '.join(SOURCES)}.")


def _grounder(recipe: Recipe, detector: Detector | None) -> Grounder:
    if recipe.masks.source == "detector":
        assert detector is not None
        return DetectorGrounder(detector, recipe.masks)
    from factory.grounder.attention import AttentionGrounder

    return AttentionGrounder(recipe.masks)
