"""A PASCAL VOC folder: JPEGImages, SegmentationClass, ImageSets/Segmentation."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures

from factory.errors import UserError
from factory.masks import IGNORE
from factory.real.labelled import LabelledImage
from factory.vocabulary import Vocabulary, voc


class VocFolder:
    """The images of one image set, `part_size` at a time.

    Pixel k is the k-th line of the folder's `labels.txt`, counted from 0, or VOC's k-th class where there is none.
    Where `only` names classes, images that show another one are left out, as in zero-shot training: not even their
    background is learnt from.
    """

    part_size = 256

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
        self.keys, self.size = keys, len(keys)
        self.identity = f"{self.size} labelled images {hashlib.sha256(' '.join(keys).encode()).hexdigest()[:12]}"

    def load(self, key: str) -> LabelledImage:
        """One image with its labels; UserError where they differ in size."""
        image = np.asarray(Pictures.open(self.root / "JPEGImages" / f"{key}.jpg").convert("RGB"))
        labels = self.labels(key)
        if labels.shape != image.shape[:2]:
            raise UserError(
                f"{self._label_path(key)} is {labels.shape[1]} x {labels.shape[0]} and its image {image.shape[1]} x "
                f"{image.shape[0]}; a label picture has its image's size."
            )
        return LabelledImage(key, image, labels)

    def labels(self, key: str) -> NDArray[np.uint8]:
        """The labels alone."""
        labels: NDArray[np.uint8] = self._lookup[np.asarray(Pictures.open(self._label_path(key)))]
        return labels

    def parts(self) -> int:
        """Runs of `part_size` images."""
        return -(-self.size // self.part_size)

    def rows(self, part: int) -> list["PackedImage"]:
        """The images of a part."""
        return [PackedImage(self, key) for key in self.keys[part * self.part_size : (part + 1) * self.part_size]]

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


@dataclass(frozen=True)
class PackedImage:
    """An image that is not read yet."""

    of: VocFolder
    key: str

    def decode(self) -> LabelledImage:
        """Read it."""
        return self.of.load(self.key)
