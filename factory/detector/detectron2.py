"""Mask R-CNN of detectron2, by a config of its model zoo; see docs/detectors.md for the installation."""

import re
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from factory.config.recipe import Recipe
from factory.dataset.records import Image, Instance
from factory.detector.labels import in_order, translation
from factory.detector.weights import State, WeightFile, fill, read_state, split_name
from factory.errors import UserError, one_line
from factory.generator.determinism import own_kernels_of_torchvision
from factory.torchvision_guard import torchvision_fault

PREFIX = "detectron2:"
_MIN_SCORE = 0.05
_EXAMPLE = f"{PREFIX}COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
_FROM_CONFIG = ("pixel_mean", "pixel_std")
_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")


class Detectron2Detector:
    """A model of detectron2's zoo.

    `name` is a config of the zoo, optionally followed by @ and a weight file that replaces the weights of the zoo. The
    channel order is that of the config (BGR in the zoo). Class ids start at 0 in the list of the config's dataset, or
    in the list next to the weight file.
    """

    def __init__(self, recipe: Recipe, name: str, device: str) -> None:
        """Raises UserError if detectron2 cannot be used, has no such config, or if the weights do not fit."""
        self._labels = labels(name)
        self._names = translation(recipe.vocabulary(), self._labels, recipe.planned_names())
        self._model, config = load_model(name, device)
        self._order = str(config.INPUT.FORMAT)
        shortest = config.INPUT.MIN_SIZE_TEST
        self._resize = _library()["ResizeShortestEdge"]([shortest, shortest], config.INPUT.MAX_SIZE_TEST)

    @torch.inference_mode()
    def detect(self, images: Sequence[Image], classes: Sequence[Collection[str]] | None = None) -> list[list[Instance]]:
        """Instances in descending order of score, down to 0.05, with masks of the images' size."""
        with own_kernels_of_torchvision():
            outputs = self._model([self._input(image) for image in images])
        return [as_instances(output["instances"].to("cpu"), self._labels, self._names) for output in outputs]

    def _input(self, image: Image) -> dict[str, Any]:
        ordered = in_order(image, self._order)
        resized = self._resize.get_transform(ordered).apply_image(ordered)
        pixels = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)).astype("float32"))
        return {"image": pixels, "height": image.shape[0], "width": image.shape[1]}


def as_instances(output: Any, labels: Sequence[str], names: dict[str, str]) -> list[Instance]:
    """Convert detectron2's `Instances` of one image: `pred_classes` index `labels`, `pred_masks` are bool (N, H, W)."""
    instances = []
    for class_id, score, mask in zip(output.pred_classes, output.scores, output.pred_masks, strict=True):
        label = labels[int(class_id)]
        if label in names:
            instances.append(Instance(names[label], float(score), np.asarray(mask, bool)))
    return instances


def labels(name: str) -> list[str]:
    """The classes by id, from 0."""
    name, file = _split(name)
    library = _library()
    config = _config(library, name)
    if file is not None and file.labels is not None:
        return list(file.labels)
    return list(library["MetadataCatalog"].get(config.DATASETS.TRAIN[0]).thing_classes)


def pin(name: str) -> str:
    """The weight file's digest, or the URL of the zoo's weights, which names their exact training run."""
    name, file = _split(name)
    library = _library()
    _config(library, name)
    return _zoo_address(library, name) if file is None else file.digest


def load_model(name: str, device: str = "cpu") -> tuple[nn.Module, Any]:
    """The network on its device, with every tensor loaded from the weights, and its config."""
    known = len(labels(name))
    name, file = _split(name)
    library = _library()
    config = _config(library, name)
    config.MODEL.DEVICE = device
    config.MODEL.WEIGHTS = ""
    config.MODEL.ROI_HEADS.SCORE_THRESH_TEST = _MIN_SCORE
    if file is not None and file.labels is not None:
        config.MODEL.ROI_HEADS.NUM_CLASSES = known
    path, description = _locate(library, name, file)
    state, writer = read_state(path, description)
    try:
        model: nn.Module = library["build_model"](config).eval()
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"detectron2 cannot build {name} on {device} ({one_line(error, 160)}); give another config, "
            f"such as {_EXAMPLE}."
        ) from error
    fill(model, _renamed(library, model, state, writer, description), description, _FROM_CONFIG)
    return model, config


def _locate(library: dict[str, Any], name: str, file: WeightFile | None) -> tuple[Path, str]:
    """(path of the weights, how messages describe it)."""
    if file is not None:
        return file.path, f"the weight file {file.path}"
    address = _zoo_address(library, name)
    try:
        path = Path(library["PathManager"].get_local_path(address))
    except Exception as error:  # iopath passes on whatever the download raised
        raise UserError(
            f"detectron2's weights of {name} cannot be downloaded ({one_line(error, 160)}); check the network, or "
            f"download {address} elsewhere and give {PREFIX}{name}@FILE."
        ) from error
    return path, f"detectron2's copy of the weights of {name}, {path},"


def _renamed(library: dict[str, Any], model: nn.Module, state: State, writer: str, description: str) -> State:
    """The tensors under the model's names, if another library wrote them or if they are those of a part of it."""
    if writer in ("caffe2", "matching"):
        try:
            state = library["align"](model.state_dict(), state, c2_conversion=writer == "caffe2")
        except (ValueError, KeyError, AssertionError, IndexError, RuntimeError) as error:
            raise UserError(
                f"{description} does not fit the model: its names cannot be matched "
                f"({one_line(error, 120)}); give weights of exactly this model."
            ) from error
    # Old files contain tensors that newer releases compute from the config.
    return {key: value for key, value in state.items() if "anchor_generator.cell_anchors" not in key} | {
        key: value for key, value in model.state_dict().items() if key in _FROM_CONFIG
    }


def _zoo_address(library: dict[str, Any], name: str) -> str:
    try:
        return str(library["model_zoo"].get_checkpoint_url(name))
    except RuntimeError as error:
        raise UserError(
            f"detectron2's model zoo has no weights of {name}; give {PREFIX}{name}@FILE, or a config with weights, "
            f"such as {_EXAMPLE}."
        ) from error


def _split(text: str) -> tuple[str, WeightFile | None]:
    """The config's name and the weight file.

    Only configs of the installed library are read, because YAML and Python configs of detectron2 can run code.
    """
    name, file = split_name(text, PREFIX)
    if name.endswith(".py"):
        raise UserError(
            f"{PREFIX}{name} is a lazy config, which is a program; give one of the zoo's YAML configs, such as "
            f"{_EXAMPLE}."
        )
    if not _NAME.fullmatch(name) or not name.endswith(".yaml"):
        raise UserError(
            f"{PREFIX}{name} is not the name of a config in detectron2's model zoo; other config files can run code "
            f"and are not read. Give a name such as {_EXAMPLE}, with @FILE for your own weights."
        )
    return name, file


def _config(library: dict[str, Any], name: str) -> Any:
    try:
        config = library["model_zoo"].get_config(name)
    except RuntimeError as error:
        raise UserError(
            f"detectron2's model zoo has no config {name!r}; give {_EXAMPLE} or the name of another instance "
            f"segmentation config of the zoo."
        ) from error
    if not config.MODEL.MASK_ON:
        raise UserError(f"detectron2's {name} detects boxes but no masks; give {_EXAMPLE}.")
    return config


def _library() -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pkg_resources and deprecated functions in its dependencies
            from detectron2 import model_zoo
            from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
            from detectron2.data import MetadataCatalog
            from detectron2.data.transforms import ResizeShortestEdge
            from detectron2.modeling import build_model
            from detectron2.utils.file_io import PathManager
    except Exception as error:  # a library that does not match torch raises more than ImportError
        raise UserError(_why_not(error)) from error
    return {
        "model_zoo": model_zoo,
        "align": align_and_update_state_dicts,
        "MetadataCatalog": MetadataCatalog,
        "ResizeShortestEdge": ResizeShortestEdge,
        "build_model": build_model,
        "PathManager": PathManager,
    }


def _why_not(error: Exception) -> str:
    missing = error.name if isinstance(error, ImportError) else None
    if missing == "detectron2":
        return "detectron2 is not installed; it is not on PyPI, see docs/detectors.md for how to build it."
    if missing == "pkg_resources":
        return (
            "detectron2 requires pkg_resources, which setuptools 82 and later no longer have; run "
            "`pip install 'setuptools<82'`, see docs/detectors.md."
        )
    reason = torchvision_fault() or one_line(error, 160)
    return f"detectron2 is installed but cannot be imported ({reason}); see docs/detectors.md for its requirements."
