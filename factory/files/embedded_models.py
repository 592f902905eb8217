"""Paths of the models embedded in the package."""

from importlib.resources import files
from pathlib import Path


def models_folder() -> Path:
    """The folder of the embedded models."""
    return Path(str(files("factory"))) / "stickers" / "models"


def pipeline_folder(name: str = "stickers") -> Path:
    """The diffusers folder of the embedded text-to-image model: `pipeline`, or `pipeline-turbo` of `stickers-turbo`."""
    return models_folder() / name.replace("stickers", "pipeline")


def detector_folder() -> Path:
    """The transformers folder of the embedded detector."""
    return models_folder() / "detector"


def grounder_folder(name: str = "stickers") -> Path:
    """The folder of the grounder of an embedded text-to-image model."""
    return models_folder() / name.replace("stickers", "grounder")
