"""The embedded detector, speaking the recipe's vocabulary."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image as Pictures

from factory.errors import UserError
from factory.generator.load import EMBEDDED, folder_digest
from factory.recipe import Recipe
from factory.records import Image, Instance
from factory.vocabulary import Vocabulary


class EmbeddedDetector:
    """Instances under the names of a vocabulary; a class that it knows under an alias is found too."""

    def __init__(self, recipe: Recipe, device: str = "cpu") -> None:
        from factory.stickers.detector import StickerDetector

        self._threads = recipe.generator.threads
        self._detector = StickerDetector.from_pretrained(detector_folder(recipe.masks.detector), device)
        self._names = translation(recipe.vocabulary(), self._detector.class_names)

    def detect(self, images: Sequence[Image]) -> list[list[Instance]]:
        """On a CPU it runs on the recipe's number of threads, as the generator does."""
        torch.set_num_threads(self._threads)
        found = self._detector.detect([Pictures.fromarray(image) for image in images])
        return [
            [
                Instance(self._names[row.class_name], row.score, row.mask)
                for row in rows
                if row.class_name in self._names
            ]
            for rows in found
        ]


def detector_folder(name: str) -> Path:
    """Where a detector lies; UserError where there is none."""
    if name == EMBEDDED:
        from factory.stickers.embedded import detector_folder as embedded

        return embedded()
    if not (Path(name) / "config.json").is_file():
        raise UserError(
            f"{name} holds no detector (there is no config.json); give `{EMBEDDED}` or a detector's folder."
        )
    return Path(name)


def pin_detector(name: str) -> str:
    """A digest of the detector's folder."""
    folder = detector_folder(name)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no detector (there is no config.json); train one or give another folder.")
    return folder_digest(folder)


def translation(vocabulary: Vocabulary, known: Sequence[str]) -> dict[str, str]:
    """The vocabulary's name of each class that a detector knows; UserError where it misses one of the vocabulary's."""
    result = {}
    for entry in vocabulary.classes:
        match = next((name for name in known if name in (entry.name, entry.display, *entry.aliases)), None)
        if match is None:
            raise UserError(
                f"the detector does not know the class {entry.name!r}; it knows {len(known)} classes such as "
                f"{', '.join(known[:5])}. Take --masks attention or another detector."
            )
        result[match] = entry.name
    return result
