"""Detectors for any class: each image is searched for the names of the classes that it should show."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from factory.config.recipe import Recipe
from factory.dataset.records import Image, Instance
from factory.detector.clipseg import ClipSegFinder
from factory.detector.open_names import OpenName
from factory.detector.open_texts import check_texts, texts_of
from factory.detector.sam2 import Sam2Masks
from factory.detector.sam3 import Sam3Finder
from factory.detector.text_boxes import Boxes, GroundingDinoBoxes, Owlv2Boxes

_SAME_OBJECT = 0.5
"""IoU above which two boxes of a class count as one object, as in torchvision's Mask R-CNN."""
_MAX_BOXES = 100
_MIN_SCORE = 0.05


class Finder(Protocol):
    """Finds instances of named classes in one image; `texts` holds the words for each class."""

    def find(self, image: Image, texts: Mapping[str, str]) -> list[Instance]:
        """The instances, in any order."""
        ...


class OpenVocabularyDetector:
    """A detector without a list of classes. It searches for the names that prompts use: those of COCO for VOC classes.

    Images are processed one by one, so the results do not depend on the batch. Instances below the default score of
    the model's library are dropped, or below the recipe's `score` or `ignore_score` if one is lower.
    """

    def __init__(self, recipe: Recipe, name: OpenName, device: str) -> None:
        """Raises UserError if a model cannot be loaded, is incomplete, or cannot read the name of a class."""
        self._texts = texts_of(recipe)
        check_texts(name, recipe.masks.detector_revision, self._texts)
        self._finder = _open(name, recipe, device)

    @torch.inference_mode()
    def detect(self, images: Sequence[Image], classes: Sequence[Collection[str]] | None = None) -> list[list[Instance]]:
        """Instances of the `classes` of each image, by default all, in descending order of score."""
        detections = []
        for position, image in enumerate(images):
            names = self._texts if classes is None else classes[position]
            texts = {name: text for name, text in self._texts.items() if name in names}
            instances = self._finder.find(image, texts) if texts else []
            detections.append(sorted((i for i in instances if i.mask.any()), key=lambda i: -i.score))
        return detections


class BoxesAndMasks:
    """Boxes for words, and a mask for each box. The score is that of the box."""

    def __init__(self, boxes: GroundingDinoBoxes | Owlv2Boxes, masks: Sam2Masks) -> None:
        self._boxes, self._masks = boxes, masks

    def find(self, image: Image, texts: Mapping[str, str]) -> list[Instance]:
        """At most 100 instances; of boxes of one class with an IoU above 0.5, only the best is kept."""
        boxes = self._boxes.boxes(image, texts)
        kept = distinct(boxes)[:_MAX_BOXES]
        masks = self._masks.masks(image, boxes.corners[kept])
        return [
            Instance(boxes.class_names[box], float(boxes.scores[box]), mask)
            for box, mask in zip(kept, masks, strict=True)
        ]


def distinct(boxes: Boxes) -> list[int]:
    """The boxes by descending score, without those that overlap a better box of their class (greedy suppression)."""
    kept: list[int] = []
    for box in sorted(range(len(boxes.class_names)), key=lambda k: (-float(boxes.scores[k]), k)):
        rivals = [other for other in kept if boxes.class_names[other] == boxes.class_names[box]]
        if not rivals or float(_overlap(boxes.corners[box], boxes.corners[rivals]).max()) <= _SAME_OBJECT:
            kept.append(box)
    return kept


def _overlap(box: Tensor, others: Tensor) -> Tensor:
    """IoU of a box (4) with others (N, 4); 0 for boxes without area."""
    shared = (torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])).clamp(min=0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).clamp(min=0).prod(1)
    union = (box[2:] - box[:2]).clamp(min=0).prod() + areas - shared
    return torch.where(union > 0, shared / union, torch.zeros_like(union))


def _open(name: OpenName, recipe: Recipe, device: str) -> Finder:
    revisions = name.revisions(recipe.masks.detector_revision)
    if name.kind in ("sam3", "clipseg"):
        finder = Sam3Finder if name.kind == "sam3" else ClipSegFinder
        return finder(name.models[0], revisions[0], device, _min_score(recipe, finder.default_score))
    of_boxes = GroundingDinoBoxes if name.kind == "grounding-dino" else Owlv2Boxes
    boxes = of_boxes(name.models[0], revisions[0], device, _min_score(recipe, of_boxes.default_score))
    return BoxesAndMasks(boxes, Sam2Masks(name.models[1], revisions[1], device))


def _min_score(recipe: Recipe, default: float) -> float:
    return max(_MIN_SCORE, min(default, recipe.masks.score, recipe.masks.ignore_score))
