"""The embedded detector, with the class names of the recipe's vocabulary."""

from collections.abc import Collection, Sequence
from pathlib import Path

from PIL import Image as Pictures

from factory.config.recipe import Recipe
from factory.dataset.records import Image, Instance
from factory.detector.labels import translation


class EmbeddedDetector:
    """Finds instances and names them by the vocabulary; classes are also matched by alias."""

    def __init__(self, recipe: Recipe, folder: Path, device: str) -> None:
        from factory.stickers.detector import StickerDetector

        self._detector = StickerDetector.from_pretrained(folder, device)
        self._names = translation(recipe.vocabulary(), self._detector.class_names, recipe.planned_names())

    def detect(self, images: Sequence[Image], classes: Sequence[Collection[str]] | None = None) -> list[list[Instance]]:
        """Instances in each image."""
        detected = self._detector.detect([Pictures.fromarray(image) for image in images])
        return [
            [
                Instance(self._names[instance.class_name], instance.score, instance.mask)
                for instance in instances
                if instance.class_name in self._names
            ]
            for instances in detected
        ]
