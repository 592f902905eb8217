"""Oracle masks: the detector's instances in generated images, as training targets for a grounder."""

from collections.abc import Sequence

import numpy as np

from factory.config.prompts import Prompt
from factory.config.sections import MaskRecipe
from factory.dataset.masks import mask_to_xywh
from factory.dataset.records import Detection, Grounded, Instance
from factory.detector.interface import Detector, ignored_pixels
from factory.generator.interface import LATENT, Generated


class OracleGrounder:
    """One mask per detected class of the prompt: the union of its instances above the score.

    Pixels of weaker detections are marked as ignored. A class that is not detected gets no mask rather than an empty
    one: a missing detection may be a mistake of the detector, and training with empty masks costs the paper's module 12
    points on unseen classes. Detections of classes that the prompt does not name are dropped, because these may be
    unseen classes.
    """

    needs = frozenset({LATENT})

    def __init__(self, detector: Detector, recipe: MaskRecipe) -> None:
        self._detector, self._recipe = detector, recipe

    def ground(self, generated: Sequence[Generated], prompts: Sequence[Prompt]) -> list[Grounded]:
        """One result per image; the score of a class is the highest score of its instances."""
        detected = self._detector.detect([g.image for g in generated], [prompt.classes for prompt in prompts])
        return [self._unite(instances, prompt) for instances, prompt in zip(detected, prompts, strict=True)]

    def _unite(self, instances: Sequence[Instance], prompt: Prompt) -> Grounded:
        named = [instance for instance in instances if instance.class_name in prompt.classes and instance.mask.any()]
        united = []
        for name in prompt.classes:
            confident = [
                instance for instance in named if instance.class_name == name and instance.score >= self._recipe.score
            ]
            if confident:
                mask = np.logical_or.reduce([instance.mask for instance in confident])
                united.append(Instance(name, max(instance.score for instance in confident), mask))
        detections = []
        for instance in sorted(named, key=lambda instance: -instance.score):
            left, top, width, height = mask_to_xywh(instance.mask)
            detections.append(Detection(instance.class_name, instance.score, (left, top, width, height)))
        return Grounded(tuple(united), ignored_pixels(named, self._recipe), tuple(detections))
