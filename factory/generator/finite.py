"""Numbers that are none: named where they arise, for every image after them would be grey or black."""

import torch
from torch import Tensor

from factory.config.sections import GeneratorRecipe
from factory.errors import UserError


def check_finite(values: Tensor, what: str, generator: GeneratorRecipe) -> None:
    """UserError where values that `what` gave are not numbers or infinite."""
    if bool(torch.isfinite(values).all()):
        return
    remedy = (
        "these weights are broken or were trained for another use; download the model again, or take another one"
        if generator.dtype in ("float32", "tf32")
        else f"this model overflows in {generator.dtype}; give another --dtype (bfloat16 or float32)"
    )
    raise UserError(f"{what} of the model {generator.model} gives values that are not finite: {remedy}.")
