"""Mask R-CNN of torchvision: the extra `torchvision`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from factory.config.recipe import Recipe
from factory.dataset.records import Image, Instance
from factory.detector.labels import NO_CLASSES, translation
from factory.detector.weights import State, WeightFile, fill, read_state, split_name
from factory.errors import UserError
from factory.hf_logging import torchvision_fault

PREFIX = "torchvision:"
_MASK_THRESHOLD = 0.5
_EXAMPLE = f"{PREFIX}maskrcnn_resnet50_fpn_v2"


class TorchvisionDetector:
    """`name` is a builder of `torchvision.models.detection` with masks, and after an @ a file of weights.

    Without a file torchvision fetches its default weights. Images are RGB of 0..1; labels count from 1 in a list of 91
    with gaps, as its weights have them, or in the list that lies beside the file.
    """

    def __init__(self, recipe: Recipe, name: str, device: str = "cpu") -> None:
        """UserError where torchvision cannot be used, knows no such model, or the weights do not fit."""
        self._labels = labels(name)
        self._names = translation(recipe.vocabulary(), self._labels, recipe.planned_names())
        self._model, self._device = load_model(name).to(device).eval(), device
        self._threads = recipe.generator.threads

    @torch.inference_mode()
    def detect(self, images: Sequence[Image]) -> list[list[Instance]]:
        """Instances by falling score, as many as the model keeps. Images of other sizes than others go alone."""
        torch.set_num_threads(self._threads)
        if len({image.shape for image in images}) > 1:
            return [self.detect([image])[0] for image in images]
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


def labels(name: str) -> list[str]:
    """The classes by their numbers; 0 is background."""
    builder, file = split_name(name, PREFIX)
    known = list(_default_weights(_library(), builder).meta["categories"])
    return known if file is None or file.labels is None else ["__background__", *file.labels]


def pin(name: str) -> str:
    """The file's digest, or the name of the default weights and the library's version."""
    builder, file = split_name(name, PREFIX)
    if file is not None:
        return file.digest
    library = _library()
    return f"{_default_weights(library, builder)}{_VERSION}{library.__version__}"


def same_pin(one: str, other: str) -> bool:
    """Whether two pins stand for the same weights, whichever version of the library fetched them."""
    return one.partition(_VERSION)[0] == other.partition(_VERSION)[0]


_VERSION = " of torchvision "


def load_model(name: str) -> nn.Module:
    """The network on the CPU, every tensor of it from the weights."""
    builder, file = split_name(name, PREFIX)
    library = _library()
    weights = _default_weights(library, builder)
    if file is None:
        state, said = _fetched(weights, builder), f"torchvision's {weights}"
    else:
        said = f"the file of weights {file.path}"
        state, _ = read_state(file.path, said)
        _check_count(state, file, len(weights.meta["categories"]), said)
    model = _build(library, builder, state, len(labels(name)))
    fill(model, state, said)
    return model


def _build(library: Any, builder: str, state: State, classes: int) -> nn.Module:
    """The network whose normalisation is what the weights mean.

    torchvision builds its first Mask R-CNN with frozen normalisation of eps 0 for its COCO weights, and with ordinary
    one of eps 1e-5 for all else. Only the ordinary one counts batches, so the names of the tensors tell which it was.
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


def _check_count(state: State, file: WeightFile, usual: int, said: str) -> None:
    """UserError where the last layer has more or fewer outputs than there are names for."""
    head = state.get("roi_heads.box_predictor.cls_score.bias")
    if head is None:
        return  # fill() tells what is missing
    if file.labels is None and len(head) != usual:
        raise UserError(
            f"{said} knows {len(head)} classes, background among them, and torchvision's list has {usual}; put the "
            f"names of its {len(head) - 1} classes into {file.path.with_suffix('.classes.txt')}, one a line."
        )
    if file.labels is not None and len(head) != len(file.labels) + 1:
        raise UserError(
            f"{said} knows {len(head) - 1} classes besides background, and "
            f"{file.path.with_suffix('.classes.txt')} names {len(file.labels)}; name them all, N/A for a number "
            f"without a class."
        )


def _fetched(weights: Any, builder: str) -> State:
    try:
        state: State = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, no such address, a full disk, a cached file that is damaged
        said = " ".join(str(error).split())[:160]
        raise UserError(
            f"torchvision's {weights} cannot be had ({said}); check the network, delete a damaged copy in "
            f"{torch.hub.get_dir()}/checkpoints, or fetch {weights.url} elsewhere and give {PREFIX}{builder}@FILE."
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
        raise UserError(f"torchvision's {builder} finds no masks; give {_EXAMPLE}.")
    return weights


def _library() -> Any:
    fault = torchvision_fault()
    if fault is not None:
        raise UserError(f"{fault}; install the build that matches, see docs/detectors.md.")
    try:
        import torchvision
    except ImportError as error:
        raise UserError(
            "torchvision is not installed; `pip install 'dataset-factory[torchvision]'` with the build that matches "
            "your torch, see docs/detectors.md."
        ) from error
    return torchvision
