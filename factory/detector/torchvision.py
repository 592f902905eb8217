"""Mask R-CNN of torchvision; requires the extra `torchvision`."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from factory.config.recipe import Recipe
from factory.dataset.records import Image, Instance
from factory.detector.labels import NO_CLASSES, translation
from factory.detector.weights import State, WeightFile, fill, read_state, split_name
from factory.errors import UserError, one_line
from factory.generator.determinism import own_kernels_of_torchvision
from factory.torchvision_guard import torchvision_fault

PREFIX = "torchvision:"
_MASK_THRESHOLD = 0.5
_EXAMPLE = f"{PREFIX}maskrcnn_resnet50_fpn_v2"
_VERSION = " of torchvision "
"""Separates the weights from the version of the library in a pin."""


class TorchvisionDetector:
    """A Mask R-CNN of torchvision.

    `name` is a builder of `torchvision.models.detection` with masks, optionally followed by @ and a weight file;
    without a file, torchvision downloads its default weights. Images are RGB in 0..1. Class ids start at 1, in the list
    of 91 classes with gaps of the weights or in the list next to the weight file.
    """

    def __init__(self, recipe: Recipe, name: str, device: str) -> None:
        """Raises UserError if torchvision cannot be used, has no such model, or if the weights do not fit."""
        self._labels = labels(name)
        self._names = translation(recipe.vocabulary(), self._labels, recipe.planned_names())
        self._model, self._device = load_model(name).to(device).eval(), device

    @torch.inference_mode()
    def detect(self, images: Sequence[Image], classes: Sequence[Collection[str]] | None = None) -> list[list[Instance]]:
        """Instances in descending order of score."""
        inputs = [torch.from_numpy(image).permute(2, 0, 1).float().div(255).to(self._device) for image in images]
        with own_kernels_of_torchvision():
            outputs = self._model(inputs)
        return [as_instances(output, self._labels, self._names) for output in outputs]


def as_instances(output: dict[str, Any], labels: Sequence[str], names: dict[str, str]) -> list[Instance]:
    """Convert the output for one image: its `labels` (N) index `labels`, its `masks` (N, 1, H, W) are probabilities."""
    instances = []
    for class_id, score, mask in zip(output["labels"], output["scores"], output["masks"], strict=True):
        label = labels[int(class_id)]
        if label not in NO_CLASSES and label in names:
            instances.append(Instance(names[label], float(score), np.asarray(mask[0].cpu() > _MASK_THRESHOLD)))
    return instances


def labels(name: str) -> list[str]:
    """The classes by id; 0 is background."""
    builder, file = split_name(name, PREFIX)
    known = list(_default_weights(_library(), builder).meta["categories"])
    return known if file is None or file.labels is None else ["__background__", *file.labels]


def pin(name: str) -> str:
    """The weight file's digest, or the name of the default weights with the library's version."""
    builder, file = split_name(name, PREFIX)
    if file is not None:
        return file.digest
    library = _library()
    return f"{_default_weights(library, builder)}{_VERSION}{library.__version__}"


def same_pin(pin: str, other: str) -> bool:
    """Whether two pins name the same weights, regardless of the library version that downloaded them."""
    return pin.partition(_VERSION)[0] == other.partition(_VERSION)[0]


def load_model(name: str) -> nn.Module:
    """The network on the CPU, with every tensor loaded from the weights."""
    builder, file = split_name(name, PREFIX)
    library = _library()
    weights = _default_weights(library, builder)
    if file is None:
        state, description = _downloaded(weights, builder), f"torchvision's {weights}"
    else:
        description = f"the weight file {file.path}"
        state, _ = read_state(file.path, description)
        _check_count(state, file, len(weights.meta["categories"]), description)
    model = _build(library, builder, state, len(labels(name)))
    fill(model, state, description)
    return model


def _build(library: Any, builder: str, state: State, classes: int) -> nn.Module:
    """The network with the kind of normalisation that the weights were trained with.

    torchvision builds its first Mask R-CNN with frozen batch normalisation of eps 0 for its COCO weights, and with
    ordinary batch normalisation of eps 1e-5 otherwise. Only the latter counts batches, so the names of the tensors show
    which one the weights have.
    """
    make = getattr(library.models.detection, builder)
    model: nn.Module = make(weights=None, weights_backbone=None, num_classes=classes)
    if builder == "maskrcnn_resnet50_fpn" and not any(name.endswith("num_batches_tracked") for name in state):
        _freeze(model, library.ops.misc.FrozenBatchNorm2d)
    return model


def _freeze(module: nn.Module, frozen: Any) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, frozen(child.num_features, eps=0.0))
        else:
            _freeze(child, frozen)


def _check_count(state: State, file: WeightFile, default: int, description: str) -> None:
    """Raise UserError if the number of outputs of the last layer is not the number of class names."""
    head = state.get("roi_heads.box_predictor.cls_score.bias")
    if head is None:
        return  # fill() reports missing tensors
    if file.labels is None and len(head) != default:
        raise UserError(
            f"{description} has {len(head)} classes including background, but torchvision's list has {default}; write "
            f"the names of its {len(head) - 1} classes to {file.path.with_suffix('.classes.txt')}, one per line."
        )
    if file.labels is not None and len(head) != len(file.labels) + 1:
        raise UserError(
            f"{description} has {len(head) - 1} classes besides background, but "
            f"{file.path.with_suffix('.classes.txt')} names {len(file.labels)}; name all of them, with N/A for an id "
            f"without a class."
        )


def _downloaded(weights: Any, builder: str) -> State:
    try:
        state: State = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, no such address, a full disk, a damaged file in the cache
        raise UserError(
            f"torchvision's {weights} cannot be downloaded ({one_line(error, 160)}); check the network, delete a "
            f"damaged copy in {torch.hub.get_dir()}/checkpoints, or download {weights.url} elsewhere and give "
            f"{PREFIX}{builder}@FILE."
        ) from error
    return state


def _default_weights(library: Any, builder: str) -> Any:
    try:
        weights = library.models.get_model_weights(builder).DEFAULT
    except (ValueError, KeyError) as error:
        raise UserError(
            f"torchvision has no detector {builder!r}; give {_EXAMPLE} or {PREFIX}maskrcnn_resnet50_fpn."
        ) from error
    if not builder.startswith("maskrcnn"):
        raise UserError(f"torchvision's {builder} detects no masks; give {_EXAMPLE}.")
    return weights


def _library() -> Any:
    fault = torchvision_fault()
    if fault is not None:
        raise UserError(f"{fault}; install the matching build, see docs/detectors.md.")
    try:
        import torchvision
    except ImportError as error:
        raise UserError(
            "torchvision is not installed; run `pip install 'dataset-factory[torchvision]'` with the build that "
            "matches your torch, see docs/detectors.md."
        ) from error
    return torchvision
