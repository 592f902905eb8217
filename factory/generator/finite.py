"""Detects NaN and infinity where they occur; otherwise, the images would be grey or black."""

import torch
from torch import Tensor

from factory.config.sections import GeneratorRecipe
from factory.errors import UserError


def check_finite(values: Tensor, what: str, generator: GeneratorRecipe) -> None:
    """Raise UserError if `values`, the output of `what`, contain NaN or infinity."""
    if bool(torch.isfinite(values).all()):
        return
    remedy = (
        "its weights are broken or were trained for another purpose; download the model again, or use another one"
        if generator.dtype in ("float32", "tf32")
        else f"it overflows in {generator.dtype}; give another --dtype (bfloat16 or float32)"
    )
    raise UserError(f"{what} of the model {generator.model} returns values that are not finite: {remedy}.")
