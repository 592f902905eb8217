"""Opens the embedded models, or models that the training recipes wrote."""

from pathlib import Path
from typing import TYPE_CHECKING

from factory.config.stickers import EMBEDDED_MODELS, STICKERS
from factory.errors import UserError
from factory.files.digest import folder_digest
from factory.files.embedded_models import detector_folder, pipeline_folder

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from factory.stickers.detector import StickerDetector


def open_pipeline(model: str | Path = STICKERS) -> "StableDiffusionPipeline":
    """An embedded text-to-image model or another diffusers folder, on the CPU in float32 and without a progress bar.

    UserError if the folder is not a Stable Diffusion pipeline, or if its weights do not match its configuration.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    from factory.config.sections import GeneratorRecipe
    from factory.generator.assembly import assemble

    folder = _pipeline_folder(model)
    pipeline = assemble(folder, None, GeneratorRecipe(model=str(folder)))
    if not isinstance(pipeline, StableDiffusionPipeline):
        raise UserError(f"{folder} is a {type(pipeline).__name__}; give the folder of a StableDiffusionPipeline.")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)
    return pipeline


def open_detector(folder: Path | None = None) -> "StickerDetector":
    """The embedded detector, or one that the training recipe wrote elsewhere, on the CPU."""
    from factory.stickers.detector import StickerDetector

    return StickerDetector.from_pretrained(folder or detector_folder())


def model_digests(pipeline: str | Path, detector: Path | None, judge: Path | None) -> dict[str, str]:
    """The digests of the folders, with the embedded detector for None; `judge` is left out if it is None."""
    folders = {"pipeline": _pipeline_folder(pipeline), "detector": detector or detector_folder(), "judge": judge}
    return {name: folder_digest(folder) for name, folder in folders.items() if folder is not None}


def _pipeline_folder(model: str | Path) -> Path:
    return pipeline_folder(str(model)) if str(model) in EMBEDDED_MODELS else Path(model)
