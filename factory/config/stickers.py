"""The embedded text-to-image models and how they are sampled by default."""

from dataclasses import dataclass
from pathlib import Path

from factory.config.guidance import CONSTANT, GuidanceSchedule
from factory.config.vocabulary import Vocabulary, coco
from factory.errors import UserError


@dataclass(frozen=True)
class EmbeddedModel:
    """Solver steps, guidance scale (1 disables it), what the model is, and the schedule of the guidance scale."""

    steps: int
    guidance: float
    about: str
    schedule: GuidanceSchedule = CONSTANT


STICKERS, TURBO = "stickers", "stickers-turbo"

EMBEDDED_MODELS = {
    STICKERS: EmbeddedModel(8, 3.0, "embedded text-to-image model, 80 COCO classes", "linear"),
    TURBO: EmbeddedModel(4, 1.0, "few-step version of stickers: faster, slightly less accurate"),
}
"""The embedded text-to-image models by name. Each has a grounder of the same name."""

STEPS = EMBEDDED_MODELS[STICKERS].steps
GUIDANCE = EMBEDDED_MODELS[STICKERS].guidance
SCHEDULE = EMBEDDED_MODELS[STICKERS].schedule


def check_embedded_classes(vocabulary: Vocabulary) -> None:
    """UserError if the embedded models were not trained on a class."""
    for entry in vocabulary.classes:
        try:
            coco().resolve(entry.display)
        except UserError as error:
            raise UserError(
                f"{error} The embedded models know only the 80 COCO classes; for other classes, give the folder or hub "
                f"id of another --model, and with --masks detector another --detector, such as sam3:MODEL."
            ) from None


def check_pipeline(model: str, option: str) -> None:
    """UserError if `model` is neither an embedded model nor a diffusers folder."""
    if model not in EMBEDDED_MODELS and not (Path(model) / "model_index.json").is_file():
        raise UserError(f"{option} must be {', '.join(EMBEDDED_MODELS)}, or a diffusers folder, got {model}.")
