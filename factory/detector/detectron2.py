"""Mask R-CNN of detectron2, by a config of its model zoo; docs/detectors.md tells how to install it."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from factory.config.recipe import Recipe
from factory.dataset.records import Image, Instance
from factory.detector.labels import in_order, translation
from factory.detector.weights import State, WeightFile, fill, read_state, split_name
from factory.errors import UserError
from factory.hf_logging import torchvision_fault

PREFIX = "detectron2:"
_MIN_SCORE = 0.05
_EXAMPLE = f"{PREFIX}COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
_FROM_CONFIG = ("pixel_mean", "pixel_std")
_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")


class Detectron2Detector:
    """`name` is a config of the model zoo, and after an @ a file of weights in place of the zoo's.

    Colours go in the order that the config names (BGR in the zoo); classes count from 0 in the list of its dataset, or
    in the list that lies beside the file.
    """

    def __init__(self, recipe: Recipe, name: str, device: str = "cpu") -> None:
        """UserError where detectron2 cannot be used, has no such config, or the weights do not fit."""
        self._labels = labels(name)
        self._names = translation(recipe.vocabulary(), self._labels, recipe.planned_names())
        self._model, config = load_model(name, device)
        self._order = str(config.INPUT.FORMAT)
        shortest = config.INPUT.MIN_SIZE_TEST
        self._resize = _library()["ResizeShortestEdge"]([shortest, shortest], config.INPUT.MAX_SIZE_TEST)
        self._threads = recipe.generator.threads

    @torch.inference_mode()
    def detect(self, images: Sequence[Image]) -> list[list[Instance]]:
        """Instances by falling score, down to 0.05, masks in the images' size.

        Images of other sizes than others go alone: they would be padded to the largest, and detect something else.
        """
        torch.set_num_threads(self._threads)
        if len({image.shape for image in images}) > 1:
            return [self.detect([image])[0] for image in images]
        answers = self._model([self._given(image) for image in images])
        return [as_instances(row["instances"].to("cpu"), self._labels, self._names) for row in answers]

    def _given(self, image: Image) -> dict[str, Any]:
        ordered = in_order(image, self._order)
        resized = self._resize.get_transform(ordered).apply_image(ordered)
        pixels = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)).astype("float32"))
        return {"image": pixels, "height": image.shape[0], "width": image.shape[1]}


def as_instances(row: Any, labels: Sequence[str], names: dict[str, str]) -> list[Instance]:
    """One image's `Instances`: `pred_classes` count from 0 into the labels, `pred_masks` are bool (N, H, W)."""
    instances = []
    for number, score, mask in zip(row.pred_classes, row.scores, row.pred_masks, strict=True):
        label = labels[int(number)]
        if label in names:
            instances.append(Instance(names[label], float(score), np.asarray(mask, bool)))
    return instances


def labels(name: str) -> list[str]:
    """The classes by their numbers, from 0."""
    name, file = _split(name)
    library = _library()
    config = _config(library, name)
    if file is not None and file.labels is not None:
        return list(file.labels)
    return list(library["MetadataCatalog"].get(config.DATASETS.TRAIN[0]).thing_classes)


def pin(name: str) -> str:
    """The file's digest, or where the zoo has the weights of a config: the address names their exact run."""
    name, file = _split(name)
    library = _library()
    _config(library, name)
    return _zoo_address(library, name) if file is None else file.digest


def load_model(name: str, device: str = "cpu") -> tuple[nn.Module, Any]:
    """The network on its device, every tensor of it from the weights, and its config."""
    known = len(labels(name))
    name, file = _split(name)
    library = _library()
    config = _config(library, name)
    config.MODEL.DEVICE = device
    config.MODEL.WEIGHTS = ""
    config.MODEL.ROI_HEADS.SCORE_THRESH_TEST = _MIN_SCORE
    if file is not None and file.labels is not None:
        config.MODEL.ROI_HEADS.NUM_CLASSES = known
    path, said = _where(library, name, file)
    state, writer = read_state(path, said)
    try:
        model: nn.Module = library["build_model"](config).eval()
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"detectron2 cannot build {name} on {device} ({' '.join(str(error).split())[:160]}); give another config, "
            f"as {_EXAMPLE}."
        ) from error
    fill(model, _named_as(library, model, state, writer, said), said, _FROM_CONFIG)
    return model, config


def _where(library: dict[str, Any], name: str, file: WeightFile | None) -> tuple[Path, str]:
    if file is not None:
        return file.path, f"the file of weights {file.path}"
    address = _zoo_address(library, name)
    try:
        path = Path(library["PathManager"].get_local_path(address))
    except Exception as error:  # iopath hands on whatever the download raised
        said = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"detectron2's weights of {name} cannot be had ({said}); check the network, or fetch {address} elsewhere "
            f"and give {PREFIX}{name}@FILE."
        ) from error
    return path, f"detectron2's copy of the weights of {name}, {path},"


def _named_as(library: dict[str, Any], model: nn.Module, state: State, writer: str, said: str) -> State:
    """The tensors under the model's names, where they were written by another library or for a part of it."""
    if writer in ("caffe2", "matching"):
        try:
            state = library["align"](model.state_dict(), state, c2_conversion=writer == "caffe2")
        except (ValueError, KeyError, AssertionError, IndexError, RuntimeError) as error:
            raise UserError(
                f"{said} does not fit the model: its names cannot be matched ({' '.join(str(error).split())[:120]}). "
                f"Give the weights of this very model."
            ) from error
    # Old files hold what is computed from the config today.
    return {key: value for key, value in state.items() if "anchor_generator.cell_anchors" not in key} | {
        key: value for key, value in model.state_dict().items() if key in _FROM_CONFIG
    }


def _zoo_address(library: dict[str, Any], name: str) -> str:
    try:
        return str(library["model_zoo"].get_checkpoint_url(name))
    except RuntimeError as error:
        raise UserError(
            f"detectron2's model zoo has no weights of {name}; give {PREFIX}{name}@FILE, or a config that has, as "
            f"{_EXAMPLE}."
        ) from error


def _split(text: str) -> tuple[str, WeightFile | None]:
    """The config's name and the file of weights.

    Only configs of the installed library are read: YAML as well as Python configs of detectron2 can run code.
    """
    name, file = split_name(text, PREFIX)
    if name.endswith(".py"):
        raise UserError(
            f"{PREFIX}{name} is a lazy config, which is a program; give one of the zoo's YAML configs, as {_EXAMPLE}."
        )
    if not _NAME.fullmatch(name) or not name.endswith(".yaml"):
        raise UserError(
            f"{PREFIX}{name} is no name of a config in detectron2's model zoo, and files of one's own are not read, "
            f"for they can run code; give {_EXAMPLE} or the like, with @FILE for weights of one's own."
        )
    return name, file


def _config(library: dict[str, Any], name: str) -> Any:
    try:
        config = library["model_zoo"].get_config(name)
    except RuntimeError as error:
        raise UserError(
            f"detectron2's model zoo has no config {name!r}; give {_EXAMPLE} or another of its instance segmentation "
            f"configs by the name that it has there."
        ) from error
    if not config.MODEL.MASK_ON:
        raise UserError(f"detectron2's {name} finds boxes and no masks; give {_EXAMPLE}.")
    return config


def _library() -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pkg_resources, and of what its dependencies find old-fashioned
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
    lacking = error.name if isinstance(error, ImportError) else None
    if lacking == "detectron2":
        return "detectron2 is not installed; it is on no package registry, docs/detectors.md tells how to build it."
    if lacking == "pkg_resources":
        return (
            "detectron2 needs pkg_resources, which setuptools 82 and later no longer have; "
            "`pip install 'setuptools<82'`, see docs/detectors.md."
        )
    said = torchvision_fault() or " ".join(str(error).split())[:160]
    return f"detectron2 is installed and cannot be imported ({said}); docs/detectors.md tells what it needs."
