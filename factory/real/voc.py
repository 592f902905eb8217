"""A PASCAL VOC folder: JPEGImages, SegmentationClass, ImageSets/Segmentation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from factory.errors import UserError
from factory.masks import IGNORE
from factory.real.labelled import LabelledFolder, LabelledImage, read_picture
from factory.vocabulary import Vocabulary, voc


class VocFolder(LabelledFolder):
    """The images of one image set.

    Pixel k is the k-th line of the folder's `labels.txt`, counted from 0, or VOC's k-th class where there is none.
    Where `only` names classes, images that show another one are left out, as in zero-shot training: not even their
    background is learnt from.
    """

    def __init__(self, root: Path, which: str, vocabulary: Vocabulary, only: Sequence[str] | None = None) -> None:
        """`which` is an image set, as "train". UserError where the folder lacks something."""
        self.root = root
        self._check(which)
        self._lookup = self._classes(vocabulary)
        keys = (root / "ImageSets" / "Segmentation" / f"{which}.txt").read_text().split()
        if only is not None:
            wanted = {0, IGNORE, *(vocabulary.names.index(name) + 1 for name in only)}
            keys = [key for key in keys if set(np.unique(self.labels(key)).tolist()) <= wanted]
        if not keys:
            raise UserError(f"the image set {which} of {root} holds no image that may be used.")
        self.keys = keys

    def load(self, key: str) -> LabelledImage:
        """One image with its labels; UserError where one is missing or they differ in size."""
        image = np.asarray(read_picture(self.root / "JPEGImages" / f"{key}.jpg").convert("RGB"))
        labels = self.labels(key)
        if labels.shape != image.shape[:2]:
            raise UserError(
                f"{self._label_path(key)} is {labels.shape[1]} x {labels.shape[0]} and its image {image.shape[1]} x "
                f"{image.shape[0]}; a label picture has its image's size."
            )
        return LabelledImage(key, image, labels)

    def labels(self, key: str) -> NDArray[np.uint8]:
        """The labels alone."""
        labels: NDArray[np.uint8] = self._lookup[np.asarray(read_picture(self._label_path(key)))]
        return labels

    def _label_path(self, key: str) -> Path:
        return self.root / "SegmentationClass" / f"{key}.png"

    def _check(self, which: str) -> None:
        for part in ("JPEGImages", "SegmentationClass", f"ImageSets/Segmentation/{which}.txt"):
            if not (self.root / part).exists():
                raise UserError(
                    f"{self.root} is no PASCAL VOC folder with an image set {which}: there is no {part}. Give the "
                    f"folder that holds JPEGImages, as VOCdevkit/VOC2012."
                )

    def _classes(self, vocabulary: Vocabulary) -> NDArray[np.uint8]:
        listed = self.root / "labels.txt"
        names = listed.read_text().splitlines() if listed.exists() else ["background", *voc().names]
        lookup = np.full(256, IGNORE, np.uint8)
        lookup[0] = 0
        entries = enumerate(vocabulary.classes, 1)
        known = {name: place for place, entry in entries for name in (entry.name, *entry.aliases)}
        for pixel, name in enumerate(names):
            if pixel and name not in known:
                raise UserError(
                    f"{self.root} has the class {name!r}, which the vocabulary {vocabulary.name} has not; choose the "
                    f"vocabulary of the folder with --classes."
                )
            if pixel:
                lookup[pixel] = known[name]
        return lookup
