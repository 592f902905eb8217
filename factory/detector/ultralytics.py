"""YOLO segmentation models of ultralytics, which must be installed separately; see docs/detectors.md."""

import importlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from factory.config.recipe import Recipe
from factory.dataset.records import Image, Instance
from factory.detector.labels import in_order, translation
from factory.detector.weights import State, WeightFile, check_archive, fill, read_state, split_name
from factory.errors import UserError, one_line
from factory.files.torch_files import unreadable_because
from factory.torchvision_guard import torchvision_fault

PREFIX = "ultralytics:"
_EXAMPLE = f"{PREFIX}yolo11n-seg@yolo11n-seg.pt"
_NAME = re.compile(r"[a-z0-9][a-z0-9.]*-seg")
_MIN_SCORE = 0.05
_MODULES = ("ultralytics.nn.", "torch.nn.modules.")
"""Packages whose classes a checkpoint may contain."""


class UltralyticsDetector:
    """A YOLO segmentation model with the preprocessing and post-processing of its own library.

    `name` is a model of the library and a weight file: its checkpoint, or a state dict with a list of classes next to
    it. The longer side of an image is resized to the library's default of 640 pixels.
    """

    def __init__(self, recipe: Recipe, name: str, device: str) -> None:
        """Raises UserError if ultralytics cannot be used, has no such model, or if the weights do not fit."""
        self._labels = labels(name)
        self._names = translation(recipe.vocabulary(), self._labels, recipe.planned_names())
        # A device as a string would make the library set CUDA_VISIBLE_DEVICES, so that every worker of a machine would
        # use its first GPU. `rect` and `batch` are as in `YOLO.predict`: images are not padded to a square.
        options = {
            "conf": _MIN_SCORE, "retina_masks": True, "rect": True, "batch": 1, "device": torch.device(device),
            "verbose": False, "save": False, "task": "segment", "mode": "predict",
        }  # fmt: skip
        self._predictor = _library()["SegmentationPredictor"](overrides=options)
        self._predictor.setup_model(load_model(name), verbose=False)

    def detect(self, images: Sequence[Image], classes: Sequence[Collection[str]] | None = None) -> list[list[Instance]]:
        """Instances in descending order of score, down to 0.05.

        Images are processed one at a time: the library stops suppressing boxes in a batch that takes too long.
        """
        return [self._instances(self._predictor([in_order(image, "BGR")])[0]) for image in images]

    def _instances(self, result: Any) -> list[Instance]:
        if result.masks is None:
            return []
        detections = zip(result.boxes.cls.tolist(), result.boxes.conf.tolist(), result.masks.data.cpu(), strict=True)
        named = [(self._labels[int(class_id)], score, np.asarray(mask, bool)) for class_id, score, mask in detections]
        return [Instance(self._names[label], score, mask) for label, score, mask in named if label in self._names]


def labels(name: str) -> list[str]:
    """The classes by id, from 0: those of the checkpoint, or of the list next to the weight file."""
    _, file = _split(name)
    if file.labels is not None:
        return list(file.labels)
    names, _ = _checkpoint(file.path)
    if names is None:
        raise UserError(
            f"the weight file {file.path} does not name its classes; write them to "
            f"{file.path.with_suffix('.classes.txt')}, one per line."
        )
    return names


def pin(name: str) -> str:
    """The weight file's digest."""
    return _split(name)[1].digest


def load_model(name: str) -> nn.Module:
    """The network on the CPU in float32, with every tensor loaded from the weight file."""
    known = labels(name)
    builder, file = _split(name)
    library = _library()
    try:
        model: nn.Module = library["SegmentationModel"](f"{builder}.yaml", nc=len(known), verbose=False)
    except Exception as error:  # the library raises FileNotFoundError for unknown names, and others for old releases
        raise UserError(
            f"ultralytics cannot build {builder} ({one_line(error, 160)}); give a segmentation model of "
            f"the library, such as {_EXAMPLE}."
        ) from error
    _, state = _checkpoint(file.path)
    fill(model, {key: value.float() if value.is_floating_point() else value for key, value in state.items()},
         f"the weight file {file.path}")  # fmt: skip
    vars(model)["names"] = dict(enumerate(known))
    return model.eval()


def _checkpoint(path: Path) -> tuple[list[str] | None, State]:
    """(class names if the file has them, tensors) of a checkpoint of the library or of a file of tensors."""
    description = f"the weight file {path}"
    if path.suffix != ".pt":
        return None, read_state(path, description)[0]
    try:
        check_archive(path)
        with torch.serialization.safe_globals(_allowed(path)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # truncated or unrelated files raise many types of exceptions
        raise UserError(f"{description} cannot be used ({unreadable_because(error)}); copy it again.") from error
    model = content.get("ema") or content.get("model") if isinstance(content, Mapping) else None
    if isinstance(model, nn.Module):
        names = getattr(model, "names", None)
        class_names = [str(names[key]) for key in sorted(names)] if isinstance(names, Mapping) else None
        return class_names, {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return None, read_state(path, description)[0]


def _allowed(path: Path) -> list[Any]:
    """The classes that a checkpoint refers to. UserError if one of them is not a network module of the library.

    The library's checkpoints are pickles of whole networks. Only their modules are created, without calling anything
    else, and only their tensors are used.
    """
    _library()
    modules = []
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
        module, _, attribute = name.rpartition(".")
        kind = getattr(importlib.import_module(module), attribute, None) if name.startswith(_MODULES) else None
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise UserError(
                f"the weight file {path} refers to {name}, which could run code; save its tensors with "
                f"torch.save(model.state_dict(), FILE) in the program that wrote it, and list its classes next to it."
            )
        modules.append(kind)
    return modules


def _split(text: str) -> tuple[str, WeightFile]:
    """The name of a model of the library, and the weight file."""
    name, file = split_name(text, PREFIX)
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{PREFIX}{name} is not the name of a segmentation model of ultralytics; give a name such as {_EXAMPLE}."
        )
    if file is None:
        raise UserError(
            f"{PREFIX}{name} has no weight file; download the checkpoint of the model and give it after an @, such as "
            f"{_EXAMPLE}."
        )
    return name, file


def _library() -> dict[str, Any]:
    fault = torchvision_fault()
    # Without these, the library contacts servers and installs packages at run time.
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    try:
        from ultralytics.models.yolo.segment.predict import SegmentationPredictor
        from ultralytics.nn.tasks import SegmentationModel
    except Exception as error:  # a library that does not match torch raises more than ImportError
        reason = fault or one_line(error, 160)
        raise UserError(
            f"ultralytics cannot be used ({reason}); install it with a torchvision that matches torch, see "
            f"docs/detectors.md."
        ) from error
    return {"SegmentationPredictor": SegmentationPredictor, "SegmentationModel": SegmentationModel}
