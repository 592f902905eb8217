"""Mask R-CNN of torchvision: the extra `torchvision`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from factory.detector.labels import NO_CLASSES, translation
from factory.errors import UserError
from factory.recipe import Recipe
from factory.records import Image, Instance

_MASK_THRESHOLD = 0.5


class TorchvisionDetector:
    """`name` is a builder of `torchvision.models.detection` with masks, and after an @ a file of weights.

    Without a file torchvision fetches its default weights. Images are RGB of 0..1; labels count from 1 in a list of 91
    with gaps, as its weights have them.
    """

    def __init__(self, recipe: Recipe, name: str, device: str = "cpu") -> None:
        """UserError where torchvision is not installed, or knows no such model."""
        builder, path = _parts(name)
        library = _library()
        weights = _default_weights(library, builder)
        self._labels: list[str] = list(weights.meta["categories"])
        self._names = translation(recipe.vocabulary(), self._labels, recipe.planned_names())
        make = getattr(library.models.detection, builder)
        if path is None:
            model = make(weights=weights)
        else:
            model = make(weights=None, weights_backbone=None, num_classes=len(self._labels))
            model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._model, self._device, self._threads = model.to(device).eval(), device, recipe.generator.threads

    @torch.inference_mode()
    def detect(self, images: Sequence[Image]) -> list[list[Instance]]:
        """Instances by falling score, as many as the model keeps."""
        torch.set_num_threads(self._threads)
        given = [torch.from_numpy(image).permute(2, 0, 1).float().div(255).to(self._device) for image in images]
        return [as_instances(row, self._labels, self._names) for row in self._model(given)]


def as_instances(row: dict[str, Any], labels: Sequence[str], names: dict[str, str]) -> list[Instance]:
    """One image's answer: `labels` (N) count into the list of labels, `masks` (N, 1, H, W) are probabilities."""
    instances = []
    for number, score, mask in zip(row["labels"], row["scores"], row["masks"], strict=True):
        label = labels[int(number)]
        if label not in NO_CLASSES and label in names:
            instances.append(Instance(names[label], float(score), np.asarray(mask[0].cpu() > _MASK_THRESHOLD)))
    return instances


def pin(name: str) -> str:
    """The file's digest, or the name of the default weights and the library's version."""
    import hashlib

    builder, path = _parts(name)
    if path is not None:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:40]
    library = _library()
    return f"{_default_weights(library, builder)} of torchvision {library.__version__}"


def _parts(name: str) -> tuple[str, Path | None]:
    builder, _, file = name.partition("@")
    if file and not Path(file).is_file():
        raise UserError(f"there is no file of weights {file}; give torchvision:{builder}@FILE, or leave out @FILE.")
    return builder, Path(file) if file else None


def _default_weights(library: Any, builder: str) -> Any:
    try:
        weights = library.models.get_model_weights(builder).DEFAULT
    except (ValueError, KeyError) as error:
        raise UserError(
            f"torchvision has no detector {builder!r}; give torchvision:maskrcnn_resnet50_fpn_v2 or "
            f"torchvision:maskrcnn_resnet50_fpn."
        ) from error
    if not builder.startswith("maskrcnn"):
        raise UserError(f"torchvision's {builder} finds boxes and no masks; give torchvision:maskrcnn_resnet50_fpn_v2.")
    return weights


def _library() -> Any:
    try:
        import torchvision
    except ImportError as error:
        raise UserError(
            "torchvision is not installed; `pip install 'dataset-factory[torchvision]'` with the build that matches "
            "your torch, see docs/detectors.md."
        ) from error
    return torchvision
