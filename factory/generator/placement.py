"""Moves a pipeline to its device: 8-bit weights, and offloading to host memory."""

from importlib.util import find_spec
from typing import Any

from factory.config.sections import GeneratorRecipe
from factory.errors import UserError
from factory.generator.family import Family


def check_extras(generator: GeneratorRecipe, offload: bool) -> None:
    """Raise UserError if a library that the settings need is not installed."""
    for needed, library, extra in (
        (generator.quantize is not None, "torchao", "generator.quantize"),
        (offload, "accelerate", "engine.offload"),
    ):
        if needed and find_spec(library) is None:
            raise UserError(
                f"{extra} needs {library}, which is not installed; install it with `pip install "
                f"'dataset-factory[small-gpu]'`, or remove {extra}."
            )


def placed(pipeline: Any, family: Family, generator: GeneratorRecipe, device: str, offload: bool) -> Any:
    """The pipeline on its device. On a CPU `offload` changes nothing."""
    if generator.quantize is not None:
        _quantize(pipeline, family)
    if offload and device != "cpu":
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    return pipeline.to(device)


def use_channels_last(model: Any) -> None:
    """Store the weights of convolutions of images in the channels-last layout.

    Unlike `model.to`, this works for the autoencoder of Qwen-Image, which has convolutions of videos.
    """
    import torch

    for weight in model.parameters():
        if weight.ndim == 4:  # not `contiguous`, which keeps the strides of weights to which both layouts apply
            weight.data = weight.data.to(memory_format=torch.channels_last)


def _quantize(pipeline: Any, family: Family) -> None:
    """Convert linear layers to 8-bit weights: those of the denoiser and of text encoders other than CLIP."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    encoders = [name for name in family.models if name.startswith("text_encoder")]
    large = [name for name in encoders if not any("CLIP" in kind for kind in family.models[name])]
    for name in (family.denoiser, *large):
        if getattr(pipeline, name, None) is not None:
            quantize_(getattr(pipeline, name), Int8WeightOnlyConfig())
