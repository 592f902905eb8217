"""Mask R-CNN of detectron2, by a config of its model zoo; docs/detectors.md tells how to install it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from factory.detector.labels import in_order, translation
from factory.errors import UserError
from factory.recipe import Recipe
from factory.records import Image, Instance

_MIN_SCORE = 0.05


class Detectron2Detector:
    """`name` is a config of the model zoo, as COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml.

    Colours go in the order that the config names (BGR in the zoo); classes count from 0 in the list of its data set.
    """

    def __init__(self, recipe: Recipe, name: str, device: str = "cpu") -> None:
        """UserError where detectron2 is not installed, or has no such config."""
        library = _library()
        config = _config(library, name)
        config.MODEL.WEIGHTS = library["model_zoo"].get_checkpoint_url(name)
        config.MODEL.DEVICE = device
        config.MODEL.ROI_HEADS.SCORE_THRESH_TEST = _MIN_SCORE
        self._order = str(config.INPUT.FORMAT)
        self._labels = list(library["MetadataCatalog"].get(config.DATASETS.TRAIN[0]).thing_classes)
        self._names = translation(recipe.vocabulary(), self._labels, recipe.planned_names())
        self._resize = library["ResizeShortestEdge"](
            [config.INPUT.MIN_SIZE_TEST, config.INPUT.MIN_SIZE_TEST], config.INPUT.MAX_SIZE_TEST
        )
        self._model = library["build_model"](config).eval()
        library["DetectionCheckpointer"](self._model).load(config.MODEL.WEIGHTS)
        self._threads = recipe.generator.threads

    @torch.inference_mode()
    def detect(self, images: Sequence[Image]) -> list[list[Instance]]:
        """Instances by falling score, down to 0.05, masks in the images' size."""
        torch.set_num_threads(self._threads)
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


def pin(name: str) -> str:
    """Where the zoo has the weights of a config: the address names their exact run."""
    library = _library()
    _config(library, name)
    return str(library["model_zoo"].get_checkpoint_url(name))


def _config(library: dict[str, Any], name: str) -> Any:
    try:
        return library["model_zoo"].get_config(name)
    except RuntimeError as error:
        raise UserError(
            f"detectron2's model zoo has no config {name!r}; give detectron2:COCO-InstanceSegmentation/"
            f"mask_rcnn_R_50_FPN_3x.yaml or another of its instance segmentation configs."
        ) from error


def _library() -> dict[str, Any]:
    try:
        from detectron2 import model_zoo
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.data import MetadataCatalog
        from detectron2.data.transforms import ResizeShortestEdge
        from detectron2.modeling import build_model
    except ImportError as error:
        raise UserError(
            "detectron2 is not installed; it is on no package registry, docs/detectors.md tells how to build it."
        ) from error
    return {
        "model_zoo": model_zoo,
        "DetectionCheckpointer": DetectionCheckpointer,
        "MetadataCatalog": MetadataCatalog,
        "ResizeShortestEdge": ResizeShortestEdge,
        "build_model": build_model,
    }
