"""Where the shipped models lie, and how to open them."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from factory.errors import UserError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from factory.stickers.detector import StickerDetector


def models_folder() -> Path:
    """The folder of the shipped models inside the package."""
    return Path(str(files("factory.stickers") / "models"))


def pipeline_folder() -> Path:
    """The diffusers folder of the embedded text-to-image model."""
    return models_folder() / "pipeline"


def detector_folder() -> Path:
    """The transformers folder of the embedded detector."""
    return models_folder() / "detector"


def open_pipeline(folder: Path | None = None, device: str = "cpu") -> "StableDiffusionPipeline":
    """The embedded text-to-image model, or another diffusers folder, in full precision and without a progress bar.

    Raises UserError where the folder is no Stable Diffusion pipeline, and where weights and configuration differ in a
    tensor.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    from factory.generator.weights import assemble
    from factory.recipe_parts import GeneratorRecipe

    folder = folder or pipeline_folder()
    pipeline = assemble(folder, None, GeneratorRecipe(model=str(folder)))
    if not isinstance(pipeline, StableDiffusionPipeline):
        raise UserError(f"{folder} is a {type(pipeline).__name__}; name the folder of a StableDiffusionPipeline.")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)
    return pipeline.to(device)


def open_detector(folder: Path | None = None, device: str = "cpu") -> "StickerDetector":
    """The embedded detector, or one that the training recipe wrote elsewhere."""
    from factory.stickers.detector import StickerDetector

    return StickerDetector.from_pretrained(folder or detector_folder(), device)


def grounder_folder() -> Path:
    """The folder of the embedded grounder."""
    return models_folder() / "grounder"
