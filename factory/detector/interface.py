"""The detector interface, and masks from detections."""

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np

from factory.config.prompts import Prompt
from factory.config.sections import MaskRecipe
from factory.dataset.masks import Mask
from factory.dataset.records import Grounded, Image, Instance
from factory.generator.interface import Generated


class Detector(Protocol):
    """Finds the instances of classes in images. Class names are those of the vocabulary; other classes are left out."""

    def detect(self, images: Sequence[Image], classes: Sequence[Collection[str]] | None = None) -> list[list[Instance]]:
        """The instances in each image, regardless of their score; a call processes one micro-batch.

        `images` are uint8 RGB (height, width, 3). `classes` are the classes to look for in each image, by default all;
        a detector with a fixed list of classes may also return others. Scores are 0 to 1, and masks are bool (height,
        width).
        """
        ...


def ignored_pixels(instances: Sequence[Instance], recipe: MaskRecipe) -> Mask | None:
    """The pixels of uncertain instances, whose score is between `ignore_score` and `score`; None if there are none."""
    masks = [instance.mask for instance in instances if recipe.ignore_score <= instance.score < recipe.score]
    return np.logical_or.reduce(masks) if masks else None


class DetectorGrounder:
    """Uses the instances that the detector finds, of the classes in the prompt, as masks.

    Pixels of instances with a score between `ignore_score` and `score` are marked as ignored.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, detector: Detector, recipe: MaskRecipe) -> None:
        self._detector, self._recipe = detector, recipe

    def ground(self, generated: Sequence[Generated], prompts: Sequence[Prompt]) -> list[Grounded]:
        """Keep all instances of a class, each with its own mask and score."""
        detected = self._detector.detect([g.image for g in generated], [prompt.classes for prompt in prompts])
        return [self._choose(instances, prompt) for instances, prompt in zip(detected, prompts, strict=True)]

    def _choose(self, instances: Sequence[Instance], prompt: Prompt) -> Grounded:
        named = [instance for instance in instances if instance.class_name in prompt.classes]
        confident = tuple(instance for instance in named if instance.score >= self._recipe.score)
        return Grounded(confident, ignored_pixels(named, self._recipe))
