"""Masks from a trained grounding module."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from factory.config.prompts import Prompt
from factory.dataset.records import Grounded, Image, Instance
from factory.errors import UserError
from factory.files.paths import split_named_path
from factory.generator.interface import Captured, Generated
from factory.grounder.folder import grounder_folder, load_grounder


class TrainedGrounder:
    """One mask per class of the prompt: each pixel goes to the class with the highest logit over 0."""

    def __init__(self, folder: Path, device: str = "cpu", threads: int = 1) -> None:
        self._module, self.config = load_grounder(folder)
        self._module.to(device)
        self._folder, self._device, self._threads = folder, device, threads
        self.needs: frozenset[str] = self._module.needs  # type: ignore[assignment]

    @torch.inference_mode()
    def ground(self, generated: Sequence[Generated], prompts: Sequence[Prompt]) -> list[Grounded]:
        """A class's score is its mean probability inside its mask."""
        torch.set_num_threads(self._threads)
        logits = self.logits(gather(generated), to_pictures([one.image for one in generated]))
        return [_grounded(row, prompt) for row, prompt in zip(logits, prompts, strict=True)]

    def logits(self, captured: Captured, pictures: Tensor) -> Tensor:
        """The module's own answer, float32 (B, K, H, W); `pictures` as `to_pictures` makes them."""
        answer: Tensor = self._module(captured, pictures.to(self._device)).float()
        if not answer.isfinite().all():
            broken = not_finite(captured)
            where = f"reads NaN or infinity in {broken}" if broken else "gives NaN, though what it reads is finite"
            raise UserError(
                f"the grounder {self._folder} {where}; the weights of the "
                f"{'text-to-image model' if broken else 'grounder'} are broken, or overflow in half precision."
            )
        return answer


def open_grounders(named: Sequence[str], device: str, threads: int) -> list[tuple[str, TrainedGrounder]]:
    """Grounders with what their rows are called: "NAME=FOLDER", or a folder alone, called after its module.

    UserError where there is no grounder, and where two of one split would be called the same.
    """
    opened: list[tuple[str, TrainedGrounder]] = []
    for one in named:
        given, folder = split_named_path(one)
        grounder = TrainedGrounder(grounder_folder(folder), device, threads)
        name = given or grounder.config.module
        if any((name, grounder.config.split) == (other, row.config.split) for other, row in opened):
            raise UserError(
                f"two grounders of split {grounder.config.split} would both be called {name}; give them names: "
                f"one=FOLDER two=FOLDER."
            )
        opened.append((name, grounder))
    return opened


def gather(generated: Sequence[Generated]) -> Captured:
    """What was captured of each image as one micro-batch."""
    first = generated[0]
    most = max(next(iter(one.maps.values())).shape[1] for one in generated) if first.maps else 0
    return Captured(
        features=_stacked([one.features for one in generated]),
        maps={name: torch.stack([_padded(one.maps[name], 1, most) for one in generated]) for name in first.maps},
        words=_words([one.words for one in generated if one.words is not None]),
    )


def not_finite(captured: Captured) -> str | None:
    """The first of what was captured that holds NaN or infinity; None where all is finite."""
    rows = {**captured.features, **captured.maps, **({} if captured.words is None else {"words": captured.words})}
    finite = torch.stack([value.isfinite().all() for value in rows.values()]).tolist()
    return next((name for name, good in zip(rows, finite, strict=True) if not good), None)


def to_pictures(images: Sequence[Image]) -> Tensor:
    """uint8 RGB (H, W, 3) each to float32 (B, 3, H, W) in -1..1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def labels_of(logits: Tensor) -> NDArray[np.int64]:
    """(..., K, H, W) to labels (..., H, W): 0 is background, k the k-th class."""
    background = torch.zeros_like(logits[..., :1, :, :])
    # `max` along this axis is many times faster on CPUs than `argmax`.
    return torch.cat([background, logits], -3).max(-3).indices.cpu().numpy()


def _grounded(logits: Tensor, prompt: Prompt) -> Grounded:
    logits = logits[: len(prompt.classes)]
    labels = labels_of(logits)
    probabilities = functional.pad(logits, (0, 0, 0, 0, 1, 0)).softmax(0).cpu().numpy()
    instances = []
    for place, name in enumerate(prompt.classes, 1):
        mask = labels == place
        if mask.any():
            instances.append(Instance(name, float(probabilities[place][mask].mean()), mask))
    return Grounded(tuple(instances))


def _stacked(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _words(rows: Sequence[Tensor]) -> Tensor | None:
    if not rows:
        return None
    most = max(len(row) for row in rows)
    return torch.stack([_padded(row, 0, most) for row in rows])


def _padded(value: Tensor, axis: int, size: int) -> Tensor:
    """`value` with zeros behind, so that it has `size` places along an axis."""
    more = size - value.shape[axis]
    if not more:
        return value
    shape = [*value.shape]
    shape[axis] = more
    return torch.cat([value, value.new_zeros(shape)], axis)
