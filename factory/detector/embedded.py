"""The embedded detector, speaking the recipe's vocabulary."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image as Pictures

from factory.config.recipe import Recipe
from factory.dataset.records import Image, Instance
from factory.detector.labels import translation


class EmbeddedDetector:
    """Instances under the names of a vocabulary; a class that it knows under an alias is found too."""

    def __init__(self, recipe: Recipe, folder: Path, device: str = "cpu") -> None:
        from factory.stickers.detector import StickerDetector

        self._threads = recipe.generator.threads
        self._detector = StickerDetector.from_pretrained(folder, device)
        self._names = translation(recipe.vocabulary(), self._detector.class_names, recipe.planned_names())

    def detect(self, images: Sequence[Image]) -> list[list[Instance]]:
        """On a CPU it runs on the recipe's number of threads, as the generator does.

        Images of other sizes than their neighbours go alone.
        """
        torch.set_num_threads(self._threads)
        if len({image.shape for image in images}) > 1:
            return [self.detect([image])[0] for image in images]
        found = self._detector.detect([Pictures.fromarray(image) for image in images])
        return [
            [
                Instance(self._names[row.class_name], row.score, row.mask)
                for row in rows
                if row.class_name in self._names
            ]
            for rows in found
        ]
