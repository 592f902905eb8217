"""Masks from a trained grounder."""

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
from factory.generator.interface import Captured, Generated
from factory.generator.memory import FittingParts
from factory.grounder.folder import load_grounder, named_grounders


class TrainedGrounder:
    """One mask per class of the prompt: each pixel is assigned to the class with the highest positive logit."""

    def __init__(self, folder: Path, device: str = "cpu", threads: int = 1) -> None:
        self._module, self.config = load_grounder(folder)
        self._module.to(device)
        self._folder, self._device, self._threads = folder, device, threads
        self.needs = self._module.needs
        self._parts = FittingParts(f"the masks of one image by the grounder {folder}", "segments")

    def ground(self, generated: Sequence[Generated], prompts: Sequence[Prompt]) -> list[Grounded]:
        """One result per image; the score of a class is its mean probability inside its mask.

        The batch is divided if it does not fit into GPU memory.
        """
        torch.set_num_threads(self._threads)
        return self._parts.apply(self._ground, list(zip(generated, prompts, strict=True)))

    @torch.inference_mode()
    def _ground(self, batch: Sequence[tuple[Generated, Prompt]]) -> list[Grounded]:
        generated = [image for image, _ in batch]
        logits = self.logits(collate(generated), images_to_tensor([g.image for g in generated]))
        return [_grounded(image_logits, prompt) for image_logits, (_, prompt) in zip(logits, batch, strict=True)]

    def logits(self, captured: Captured, images: Tensor) -> Tensor:
        """The module's logits, float32 (B, K, H, W), for `images` of `images_to_tensor`.

        Raises UserError if they are NaN or infinite.
        """
        logits: Tensor = self._module(captured, images.to(self._device)).float()
        if not logits.isfinite().all():
            broken = not_finite(captured)
            where = f"reads NaN or infinity in {broken}" if broken else "returns NaN for finite inputs"
            raise UserError(
                f"the grounder {self._folder} {where}; the weights of the "
                f"{'text-to-image model' if broken else 'grounder'} are broken, or overflow in half precision."
            )
        return logits


def open_grounders(named: Sequence[str], device: str, threads: int) -> list[tuple[str, TrainedGrounder]]:
    """The names and grounders of `named_grounders`, loaded."""
    return [(name, TrainedGrounder(folder, device, threads)) for name, folder, _ in named_grounders(named)]


def collate(generated: Sequence[Generated]) -> Captured:
    """The captured tensors of several images as one micro-batch, padded to the maximum number of classes."""
    first = generated[0]
    max_classes = 0
    if first.cross_attention:
        max_classes = max(next(iter(g.cross_attention.values())).shape[1] for g in generated)
    embeddings = [g.class_embeddings for g in generated if g.class_embeddings is not None]
    return Captured(
        features=_stacked([g.features for g in generated]),
        cross_attention={
            name: torch.stack([_padded(g.cross_attention[name], 1, max_classes) for g in generated])
            for name in first.cross_attention
        },
        class_embeddings=_class_embeddings(embeddings),
    )


def not_finite(captured: Captured) -> str | None:
    """The name of the first captured tensor that contains NaN or infinity; None if all are finite."""
    tensors = {
        **captured.features,
        **captured.cross_attention,
        **({} if captured.class_embeddings is None else {"class_embeddings": captured.class_embeddings}),
    }
    finite = torch.stack([value.isfinite().all() for value in tensors.values()]).tolist()
    return next((name for name, good in zip(tensors, finite, strict=True) if not good), None)


def images_to_tensor(images: Sequence[Image]) -> Tensor:
    """Convert uint8 RGB images (H, W, 3) to float32 (B, 3, H, W) in -1..1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def labels_of(logits: Tensor) -> NDArray[np.int64]:
    """Labels (..., H, W) of logits (..., K, H, W): 0 is background, k the k-th class."""
    background = torch.zeros_like(logits[..., :1, :, :])
    # On CPUs `max` along this axis is many times faster than `argmax`.
    return torch.cat([background, logits], -3).max(-3).indices.cpu().numpy()


def _grounded(logits: Tensor, prompt: Prompt) -> Grounded:
    logits = logits[: len(prompt.classes)]
    labels = labels_of(logits)
    probabilities = functional.pad(logits, (0, 0, 0, 0, 1, 0)).softmax(0).cpu().numpy()
    instances = []
    for k, name in enumerate(prompt.classes, 1):
        mask = labels == k
        if mask.any():
            instances.append(Instance(name, float(probabilities[k][mask].mean()), mask))
    return Grounded(tuple(instances))


def _stacked(images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several images, each as one batch."""
    return {name: torch.stack([tensors[name] for tensors in images]) for name in images[0]}


def _class_embeddings(embeddings: Sequence[Tensor]) -> Tensor | None:
    if not embeddings:
        return None
    max_classes = max(len(image) for image in embeddings)
    return torch.stack([_padded(image, 0, max_classes) for image in embeddings])


def _padded(value: Tensor, axis: int, size: int) -> Tensor:
    """`value` with zeros appended to reach `size` along an axis."""
    missing = size - value.shape[axis]
    if not missing:
        return value
    shape = [*value.shape]
    shape[axis] = missing
    return torch.cat([value, value.new_zeros(shape)], axis)
