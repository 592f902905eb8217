"""Oracle masks: what the detector finds in a generated image, as training targets for a grounder."""

from collections.abc import Sequence

import numpy as np

from factory.config.prompts import Prompt
from factory.config.sections import MaskRecipe
from factory.dataset.masks import mask_to_xywh
from factory.dataset.records import Detection, Grounded, Instance
from factory.detector.interface import Detector
from factory.generator.interface import LATENT, Generated


class OracleGrounder:
    """One mask per class of the prompt that was found: all its instances over the score, united.

    Pixels of weaker detections are marked to be ignored. A class that is not found is left out, for a missing
    detection says nothing: trained towards an empty mask instead, the paper's module loses 12 points on unseen classes.
    Detections of classes that the prompt does not name are dropped: they may be of unseen classes.
    """

    needs = frozenset({LATENT})

    def __init__(self, detector: Detector, recipe: MaskRecipe) -> None:
        self._detector, self._recipe = detector, recipe

    def ground(self, generated: Sequence[Generated], prompts: Sequence[Prompt]) -> list[Grounded]:
        """A class's score is that of its surest instance."""
        found = self._detector.detect([one.image for one in generated])
        return [self._unite(instances, prompt) for instances, prompt in zip(found, prompts, strict=True)]

    def _unite(self, instances: Sequence[Instance], prompt: Prompt) -> Grounded:
        named = [row for row in instances if row.class_name in prompt.classes and row.mask.any()]
        united = []
        for name in prompt.classes:
            sure = [row for row in named if row.class_name == name and row.score >= self._recipe.score]
            if sure:
                mask = np.logical_or.reduce([row.mask for row in sure])
                united.append(Instance(name, max(row.score for row in sure), mask))
        unsure = [row.mask for row in named if self._recipe.ignore_score <= row.score < self._recipe.score]
        detections = []
        for row in sorted(named, key=lambda row: -row.score):
            left, top, width, height = mask_to_xywh(row.mask)
            detections.append(Detection(row.class_name, row.score, (left, top, width, height)))
        return Grounded(tuple(united), np.logical_or.reduce(unsure) if unsure else None, tuple(detections))
