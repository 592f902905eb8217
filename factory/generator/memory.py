"""Divides batches that do not fit into GPU memory."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

from factory.errors import UserError
from factory.training.memory import enough_memory, is_out_of_memory

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


class FittingParts:
    """Applies a function to a batch, or to parts of it if the batch does not fit. The size that fits is remembered."""

    def __init__(self, subject: str, verb: str = "generates") -> None:
        """`subject` names an image and the model in messages, and `verb` what is done with images."""
        self._subject, self._verb = subject, verb
        self._size: int | None = None

    def apply(self, function: Callable[[Sequence[Item]], list[Result]], batch: Sequence[Item]) -> list[Result]:
        """The results for a batch, in order. Raises UserError if not even one sample fits."""
        results: list[Result] = []
        while len(results) < len(batch):
            part = batch[len(results) :][: self._size]
            part_results = _unless_out_of_memory(function, part)
            if part_results is not None:
                results += part_results
                continue
            if len(part) == 1:
                raise UserError(
                    f"the GPU has too little free memory for {self._subject}: end other programs on it, or give "
                    f"--dtype bfloat16, a smaller width and height, generator.quantize, or engine.offload."
                )
            self._size = (len(part) + 1) // 2
            _log.warning(
                "The GPU has too little memory for %d images at once; this worker now %s %d at a time.",
                len(part),
                self._verb,
                self._size,
            )
            # Not earlier: while the error is handled, it refers to the tensors of the failed call.
            torch.cuda.empty_cache()
        return results


def loading(what: str) -> AbstractContextManager[None]:
    """GpuError if the models that are loaded in the `with` block do not fit into GPU memory."""
    remedy = "start fewer workers per GPU, or use --dtype bfloat16, generator.quantize or engine.offload"
    return enough_memory(what, remedy)


def _unless_out_of_memory(
    function: Callable[[Sequence[Item]], list[Result]], part: Sequence[Item]
) -> list[Result] | None:
    try:
        return function(part)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
