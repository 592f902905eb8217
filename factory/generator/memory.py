"""Batches that do not fit into the memory of a GPU are generated in parts."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from factory.errors import UserError

_log = logging.getLogger(__name__)

Given = TypeVar("Given")
Made = TypeVar("Made")


class FittingParts:
    """Applies a function to a batch, or to parts of it once a batch did not fit. The size that fits is remembered."""

    def __init__(self, subject: str) -> None:
        """`subject` names an image and the model in messages."""
        self._subject = subject
        self._size: int | None = None

    def apply(self, function: Callable[[Sequence[Given]], list[Made]], batch: Sequence[Given]) -> list[Made]:
        """The results for a batch, in order. Raises UserError if not even one sample fits."""
        results: list[Made] = []
        while len(results) < len(batch):
            part = batch[len(results) :][: self._size]
            made = _unless_out_of_memory(function, part)
            if made is not None:
                results += made
                continue
            if len(part) == 1:
                raise UserError(
                    f"the GPU has too little free memory for {self._subject}: end other programs on it, or give "
                    f"--dtype bfloat16, a smaller width and height, generator.quantize, or engine.offload."
                )
            self._size = (len(part) + 1) // 2
            _log.warning(
                "The GPU has too little memory for %d images at once; this worker now generates %d at a time.",
                len(part),
                self._size,
            )
            # Only here: while the error is handled, it refers to the tensors of the failed call.
            torch.cuda.empty_cache()
        return results


def _unless_out_of_memory(
    function: Callable[[Sequence[Given]], list[Made]], part: Sequence[Given]
) -> list[Made] | None:
    try:
        return function(part)
    except torch.OutOfMemoryError:
        return None
