"""A PASCAL VOC folder: JPEGImages, SegmentationClass, ImageSets/Segmentation."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from factory.config.vocabulary import Vocabulary, voc
from factory.dataset.masks import IGNORE
from factory.errors import UserError
from factory.files.text import read_text
from factory.labelled.image_list import IMAGES, LABELS, SUFFIXES, read_keys
from factory.labelled.interface import LabelledFolder, LabelledImage, checked_vocabulary
from factory.labelled.picture import read_photograph, read_values

_LOOKED_AT = 1000
"""Label pictures that `check` reads, spread over the list: seconds, also of a large folder."""

_LOSSY = (".jpg", ".jpeg", ".webp")
_NAMES = "labels.txt"


class VocFolder(LabelledFolder):
    """The images of one image set.

    Value k of a label picture is the k-th line of the folder's `labels.txt`, counted from 0, or VOC's k-th class where
    there is none; 255 and values without a class are ignored. Where `only` names classes, images that show another one
    are left out, as in zero-shot training: not even their background is learnt from.
    """

    def __init__(self, root: Path, which: str, vocabulary: Vocabulary, only: Sequence[str] | None = None) -> None:
        """`which` is an image set, as "train". UserError where the folder lacks something."""
        self.root, self._which = root, which
        self._check_parts()
        self._names = self._class_names()
        self._lookup = self._places(checked_vocabulary(vocabulary))
        self._files = {folder: _by_key(root / folder) for folder in (IMAGES, LABELS)}
        images = self._files[IMAGES]
        keys = read_keys(root / "ImageSets" / "Segmentation" / f"{which}.txt", root, images.__contains__)
        if only is not None:
            wanted = {0, IGNORE, *(vocabulary.names.index(name) + 1 for name in only)}
            keys = [key for key in keys if set(np.unique(self.labels(key)).tolist()) <= wanted]
        if not keys:
            raise UserError(f"the image set {which} of {root} holds no image that may be used.")
        self.keys = keys

    def load(self, key: str) -> LabelledImage:
        """One image with its labels; UserError where one is missing or they differ in size."""
        path, labels = self._path(IMAGES, key), self.labels(key)
        photograph = read_photograph(path)
        image = photograph.of_size(*labels.shape)
        if image is None:
            height, width = photograph.upright.shape[:2]
            raise UserError(
                f"{self._path(LABELS, key)} is {labels.shape[1]} x {labels.shape[0]} and its image {width} x {height}; "
                f"a label picture has its image's size."
            )
        return LabelledImage(key, image, labels)

    def labels(self, key: str) -> NDArray[np.uint8]:
        """The labels alone."""
        return self._places_of(self._values(key))

    def check(self) -> None:
        """See `LabelledFolder`: every picture is looked for, and some label pictures are read."""
        for key in self.keys:
            self._path(IMAGES, key)
            self._path(LABELS, key)
        twice = len(self.keys) - len(set(self.keys))
        if twice:
            self.notes += (f"The image set {self._which} of {self.root} lists {twice} images more than once.",)
        spread = self.keys[:: -(-len(self.keys) // _LOOKED_AT)]
        pixels, pictures = Counter[int](), Counter[int]()
        for key in spread:
            values, counts = np.unique(self._values(key), return_counts=True)
            pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            pictures.update(values.tolist())
        seen = sorted(pixels)
        places = dict(zip(seen, self._places_of(np.array(seen)).tolist(), strict=True))
        if set(places.values()) <= {0, IGNORE} and not any(
            (~np.isin(self.labels(key), (0, IGNORE))).any() for key in self.keys
        ):
            told = ", ".join(f"{value} ({count} pixels)" for value, count in sorted(pixels.items())[:6])
            raise UserError(
                f"no label picture of the image set {self._which} of {self.root} shows a class: its values are {told}; "
                f"a value is the place of its class in {_NAMES}, 0 is background and 255 is not counted."
            )
        strange = [value for value in seen if places[value] == IGNORE and value != IGNORE]
        if strange:
            told = ", ".join(f"{value} ({pixels[value]} pixels, {pictures[value]} pictures)" for value in strange[:6])
            more = f" and {len(strange) - 6} more values" if len(strange) > 6 else ""
            self.notes += (
                f"In {len(spread)} label pictures of {self.root}, {told}{more} stand for no class; their pixels are "
                f"not counted.",
            )

    def _values(self, key: str) -> NDArray[np.int64]:
        return read_values(self._path(LABELS, key), len(self._names))

    def _places_of(self, values: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Stored values as places in the vocabulary; what is beyond the lookup is its last entry, of no class."""
        last = len(self._lookup) - 1
        places: NDArray[np.uint8] = self._lookup[np.where((values < 0) | (values > last), last, values)]
        return places

    def _path(self, folder: str, key: str) -> Path:
        """The picture of a key; UserError where there is none, or more than one."""
        names = self._files[folder].get(key, [])
        if folder == LABELS and len(names) > 1:
            names = [name for name in names if not name.lower().endswith(_LOSSY)] or names
        if len(names) > 1:
            raise UserError(f"{self.root / folder} has both {names[0]} and {names[1]}; leave one of them there.")
        path = self.root / folder / (names[0] if names else f"{key}{'.png' if folder == LABELS else '.jpg'}")
        if not names:
            raise UserError(f"{path} cannot be read: there is none; every image of the folder needs its picture.")
        if folder == LABELS and path.suffix.lower() in _LOSSY:
            raise UserError(f"{path} does not keep values exactly; a label picture is a PNG of mode P or L.")
        return path

    def _check_parts(self) -> None:
        for part in (IMAGES, LABELS, f"ImageSets/Segmentation/{self._which}.txt"):
            if not (self.root / part).exists():
                raise UserError(
                    f"{self.root} is no PASCAL VOC folder with an image set {self._which}: there is no {part}. Give "
                    f"the folder that holds JPEGImages, as VOCdevkit/VOC2012."
                )

    def _class_names(self) -> list[str]:
        """Background and the classes by value, from the folder's list or VOC's; UserError where a value is unclear."""
        path = self.root / _NAMES
        if not path.exists():
            return ["background", *voc().names]
        lines = [line.replace("\ufeff", "").strip() for line in read_text(path, "list of classes").split("\n")]
        while lines and not lines[-1]:
            lines.pop()
        if lines and _plain_word(lines[0]) == "ignore":
            lines = lines[1:]  # labelme lists __ignore__ first, as -1
        if not lines or _plain_word(lines[0]) not in ("background", "bg"):
            raise UserError(
                f"{path} begins with {lines[0] if lines else ''!r}, not with background: value k of a label picture is "
                f"the k-th line, counted from 0. Write `background` as the first line."
            )
        if "" in lines:
            raise UserError(f"line {lines.index('') + 1} of {path} is blank, which shifts the classes after it.")
        return lines

    def _places(self, vocabulary: Vocabulary) -> NDArray[np.uint8]:
        """From a stored value to a place in the vocabulary."""
        lookup = np.full(max(256, len(self._names)) + 1, IGNORE, np.uint8)
        lookup[0] = 0
        for value, name in enumerate(self._names[1:], 1):
            entry = vocabulary.find(name)
            if entry is None and value == IGNORE:
                continue
            if entry is None:
                raise UserError(
                    f"{self.root} has the class {name!r}, which the vocabulary {vocabulary.name} has not; choose the "
                    f"vocabulary of the folder with --classes."
                )
            lookup[value] = vocabulary.names.index(entry.name) + 1
        return lookup


def _by_key(folder: Path) -> dict[str, list[str]]:
    """The pictures below a folder by their paths without suffix."""
    found: dict[str, list[str]] = {}
    for place, _, names in os.walk(folder):
        below = os.path.relpath(place, folder)
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES:
                key, path = (stem, name) if below == "." else (f"{below}/{stem}", f"{below}/{name}")
                found.setdefault(key, []).append(path)
    return found


def _plain_word(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())
