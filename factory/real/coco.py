"""COCO: a folder of images and a file of instance annotations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from factory.errors import UserError
from factory.masks import IGNORE
from factory.real.labelled import LabelledFolder, LabelledImage, read_picture
from factory.vocabulary import Vocabulary


class CocoFolder(LabelledFolder):
    """The images that an annotation file names, with their instances united by class.

    A pixel of two classes goes to the smaller instance, for it lies in front more often; crowds are ignored. Categories
    that the vocabulary has not are background.
    """

    def __init__(
        self, root: Path, annotations: Path, vocabulary: Vocabulary, only: Sequence[str] | None = None
    ) -> None:
        """UserError where a file is missing or no annotation file. `only`: images with other classes are left out."""
        from contextlib import redirect_stdout
        from io import StringIO

        from pycocotools.coco import COCO

        self.root = root
        if not root.is_dir() or not annotations.is_file():
            raise UserError(
                f"there is no {root if not root.is_dir() else annotations}; give COCO's folder of images, and its "
                f"instances_*.json with --annotations."
            )
        try:
            with redirect_stdout(StringIO()):
                self._coco = COCO(str(annotations))
            categories = self._coco.loadCats(self._coco.getCatIds())
            self._images: dict[str, Any] = {str(row["id"]): row for row in self._coco.loadImgs(self._coco.getImgIds())}
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(f"{annotations} is no file of COCO instances ({error}).") from error
        entries = enumerate(vocabulary.classes, 1)
        known = {name: place for place, entry in entries for name in (entry.name, *entry.aliases)}
        self._place = {row["id"]: known[row["name"]] for row in categories if row["name"] in known}
        wanted = None if only is None else {vocabulary.names.index(name) + 1 for name in only}
        if not self._place:
            raise UserError(
                f"{annotations} has no category of the vocabulary {vocabulary.name}; choose that of the file with "
                f"--classes."
            )
        self.keys = [key for key in self._images if self._usable(key, wanted)]
        if not self.keys:
            raise UserError(f"{annotations} names no image that may be used.")

    def load(self, key: str) -> LabelledImage:
        """One image with its labels."""
        row = self._images[key]
        path = self.root / row["file_name"]
        image = np.asarray(read_picture(path).convert("RGB"))
        if image.shape[:2] != (row["height"], row["width"]):
            raise UserError(
                f"{path} is {image.shape[1]} x {image.shape[0]} and its annotation {row['width']} x {row['height']}."
            )
        labels = np.zeros(image.shape[:2], np.uint8)
        for annotation in sorted(self._annotations(key), key=lambda one: -one["area"]):
            mask = self._coco.annToMask(annotation).astype(bool)
            labels[mask] = IGNORE if annotation.get("iscrowd") else self._place[annotation["category_id"]]
        return LabelledImage(key, image, labels)

    def _annotations(self, key: str) -> list[dict[str, Any]]:
        rows = self._coco.loadAnns(self._coco.getAnnIds(imgIds=[int(key) if key.isdecimal() else key]))
        return [row for row in rows if row["category_id"] in self._place]

    def _usable(self, key: str, wanted: set[int] | None) -> bool:
        return wanted is None or {self._place[row["category_id"]] for row in self._annotations(key)} <= wanted
