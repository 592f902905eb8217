"""What a detector gives, and the masks that follow from it."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from factory.config.prompts import Prompt
from factory.config.sections import MaskRecipe
from factory.dataset.records import Grounded, Image, Instance
from factory.generator.interface import Generated


class Detector(Protocol):
    """Finds instances. Class names are the vocabulary's; what it does not name is left out."""

    def detect(self, images: Sequence[Image]) -> list[list[Instance]]:
        """The instances in each image, all scores included; images of one call are one micro-batch."""
        ...


class DetectorGrounder:
    """Takes the detector's instances of the prompt's classes as the masks.

    Instances of a score too low to be an object but too high to be nothing are marked to be ignored.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, detector: Detector, recipe: MaskRecipe) -> None:
        self._detector, self._recipe = detector, recipe

    def ground(self, generated: Sequence[Generated], prompts: Sequence[Prompt]) -> list[Grounded]:
        """All instances of a class are kept, each with its own mask and score."""
        found = self._detector.detect([one.image for one in generated])
        return [self._choose(instances, prompt) for instances, prompt in zip(found, prompts, strict=True)]

    def _choose(self, instances: Sequence[Instance], prompt: Prompt) -> Grounded:
        named = [instance for instance in instances if instance.class_name in prompt.classes]
        sure = tuple(instance for instance in named if instance.score >= self._recipe.score)
        unsure = [row.mask for row in named if self._recipe.ignore_score <= row.score < self._recipe.score]
        return Grounded(sure, np.logical_or.reduce(unsure) if unsure else None)
