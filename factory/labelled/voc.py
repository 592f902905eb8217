"""A PASCAL VOC folder: JPEGImages, SegmentationClass, ImageSets/Segmentation."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from factory.config.vocabulary import Vocabulary, voc
from factory.dataset.masks import IGNORE
from factory.errors import UserError, first_few
from factory.files.listing import files_below
from factory.files.text import read_bytes, read_text
from factory.labelled.image_list import IMAGES, LABELS, SUFFIXES, read_keys
from factory.labelled.interface import LabelledFolder, LabelledImage, checked_vocabulary, spread
from factory.labelled.picture import MAX_FILE_BYTES, fits, read_photograph, read_size, read_values

_LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
_CLASS_LIST = "labels.txt"


class VocFolder(LabelledFolder):
    """The images of one image set.

    Value k of a label image is line k (zero-based) of the folder's `labels.txt`, or VOC's class k without that file.
    255 and values without a class are ignored. If `only` names classes, images that show any other class are left out
    entirely, as zero-shot training requires.
    """

    def __init__(self, root: Path, image_set: str, vocabulary: Vocabulary, only: Sequence[str] | None = None) -> None:
        """`image_set` is a name such as "train". UserError if the folder is incomplete."""
        self.root, self._image_set = root, image_set
        self._check_layout()
        self._names = self._class_names()
        self._lookup = self._label_lookup(checked_vocabulary(vocabulary))
        self._files = {folder: _by_key(root / folder) for folder in (IMAGES, LABELS)}
        images = self._files[IMAGES]
        keys = read_keys(root / "ImageSets" / "Segmentation" / f"{image_set}.txt", root, images.__contains__)
        if only is not None:
            allowed = {0, IGNORE, *(vocabulary.label_of(name) for name in only)}
            keys = [key for key in keys if set(np.unique(self.labels(key)).tolist()) <= allowed]
        if not keys:
            raise UserError(f"the image set {image_set} of {root} has no image that can be used.")
        self.keys = keys

    def load(self, key: str) -> LabelledImage:
        """One image with its labels. UserError if either is missing or their sizes differ."""
        path, labels = self._path(IMAGES, key), self.labels(key)
        photograph = read_photograph(path)
        image = photograph.of_size(*labels.shape)
        if image is None:
            raise self._wrong_size(key, labels.shape, photograph.upright.shape)
        return LabelledImage(key, image, labels)

    def _wrong_size(self, key: str, labels: Sequence[int], image: Sequence[int]) -> UserError:
        return UserError(
            f"{self._path(LABELS, key)} has {labels[1]} x {labels[0]} pixels, but its image has {image[1]} x "
            f"{image[0]}; both must have the same size."
        )

    def labels(self, key: str) -> NDArray[np.uint8]:
        """The labels of an image, uint8 (H, W), as in `LabelledImage`."""
        return self._labels_of(self._values(key))

    def check(self) -> None:
        """See `LabelledFolder`: checks that every file exists, reads some label images, and compares their sizes."""
        for key in self.keys:
            self._path(IMAGES, key)
            self._path(LABELS, key)
        duplicates = len(self.keys) - len(set(self.keys))
        if duplicates:
            self.notes += (f"The image set {self._image_set} of {self.root} lists {duplicates} images more than once.",)
        checked = spread(self.keys)
        pixels, images = Counter[int](), Counter[int]()
        for key in checked:
            label_image, path = self._values(key), self._path(IMAGES, key)
            if not fits(path, *label_image.shape):
                raise self._wrong_size(key, label_image.shape, read_size(path))
            values, counts = np.unique(label_image, return_counts=True)
            pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            images.update(values.tolist())
        present = sorted(pixels)
        labels = dict(zip(present, self._labels_of(np.array(present)).tolist(), strict=True))
        # If the checked images show no class, read all of them before giving up.
        if set(labels.values()) <= {0, IGNORE} and not any(
            (~np.isin(self.labels(key), (0, IGNORE))).any() for key in self.keys
        ):
            listed = ", ".join(f"{value} ({count} pixels)" for value, count in sorted(pixels.items())[:6])
            raise UserError(
                f"no label image of the image set {self._image_set} of {self.root} shows a class: its values are "
                f"{listed}; a value must be the index of a class in {_CLASS_LIST}, where 0 is background and 255 is "
                f"ignored."
            )
        unknown = [value for value in present if labels[value] == IGNORE and value != IGNORE]
        if unknown:
            listed = ", ".join(f"{value} ({pixels[value]} pixels, {images[value]} images)" for value in unknown[:6])
            rest = f" and {len(unknown) - 6} more values" if len(unknown) > 6 else ""
            self.notes += (
                f"In {len(checked)} label images of {self.root}, the values {listed}{rest} are not classes; their "
                f"pixels are ignored.",
            )

    def _content(self) -> Iterator[bytes]:
        yield "\n".join(self._names).encode()
        for key in self.keys:
            yield str(self._path(IMAGES, key).stat().st_size).encode()
            yield read_bytes(self._path(LABELS, key), "label image", MAX_FILE_BYTES)

    def _values(self, key: str) -> NDArray[np.int64]:
        return read_values(self._path(LABELS, key), len(self._names))

    def _labels_of(self, values: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Labels for stored values. Values outside the lookup table map to its last entry, which is IGNORE."""
        last = len(self._lookup) - 1
        labels: NDArray[np.uint8] = self._lookup[np.where((values < 0) | (values > last), last, values)]
        return labels

    def _path(self, folder: str, key: str) -> Path:
        """The file of a key. UserError if there is none or more than one."""
        names = self._files[folder].get(key, [])
        if folder == LABELS and len(names) > 1:
            names = [name for name in names if not name.lower().endswith(_LOSSY_SUFFIXES)] or names
        if len(names) > 1:
            raise UserError(f"{self.root / folder} contains both {names[0]} and {names[1]}; remove one of them.")
        if not names:
            suffixes = "lossless suffix such as .png" if folder == LABELS else f"suffix {', '.join(SUFFIXES)}"
            raise UserError(
                f"{self.root / folder} has no file {key} with a {suffixes}; every entry of the image set "
                f"{self._image_set} needs an image and a label image."
            )
        path = self.root / folder / names[0]
        if folder == LABELS and path.suffix.lower() in _LOSSY_SUFFIXES:
            raise UserError(f"{path} is in a lossy format, which changes the labels; save them as PNG, TIFF or BMP.")
        return path

    def _check_layout(self) -> None:
        lists = self.root / "ImageSets" / "Segmentation"
        for part in (self.root / IMAGES, self.root / LABELS, lists):
            if not part.is_dir():
                raise UserError(
                    f"{self.root} is not a PASCAL VOC folder: it has no folder {part.relative_to(self.root)}. Give the "
                    f"folder that contains it, such as VOCdevkit/VOC2012; for COCO images, also give "
                    f"--annotations."
                )
        if not (lists / f"{self._image_set}.txt").is_file():
            names = sorted(path.stem for path in lists.glob("*.txt"))
            remedy = f"choose from {first_few(names, 10)} with --real-set" if names else "write this list of images"
            raise UserError(
                f"{self.root} has no image set {self._image_set}: there is no {lists / self._image_set}.txt; {remedy}."
            )

    def _class_names(self) -> list[str]:
        """Background and the classes by value, from the folder's list or VOC's. UserError if a value is ambiguous."""
        path = self.root / _CLASS_LIST
        if not path.exists():
            return ["background", *voc().names]
        lines = [line.replace("\ufeff", "").strip() for line in read_text(path, "list of classes").split("\n")]
        while lines and not lines[-1]:
            lines.pop()
        if lines and _normalised(lines[0]) == "ignore":
            lines = lines[1:]  # labelme lists __ignore__ first, as -1
        if not lines or _normalised(lines[0]) not in ("background", "bg"):
            raise UserError(
                f"{path} begins with {lines[0] if lines else ''!r} instead of background: value k of a label image is "
                f"line k (zero-based). Write `background` as the first line."
            )
        if "" in lines:
            raise UserError(
                f"line {lines.index('') + 1} of {path} is blank, which shifts the classes after it; remove it."
            )
        return lines

    def _label_lookup(self, vocabulary: Vocabulary) -> NDArray[np.uint8]:
        """A table from stored values to labels of the vocabulary."""
        lookup = np.full(max(256, len(self._names)) + 1, IGNORE, np.uint8)
        lookup[0] = 0
        for value, name in enumerate(self._names[1:], 1):
            entry = vocabulary.find(name)
            if entry is None and value == IGNORE:
                continue
            if entry is None:
                raise self._unknown_class(name, vocabulary)
            lookup[value] = vocabulary.label_of(entry.name)
        return lookup

    def _unknown_class(self, name: str, vocabulary: Vocabulary) -> UserError:
        remedy = "to evaluate a segmenter, train it with these classes first"
        if not (self.root / _CLASS_LIST).exists():
            return UserError(
                f"{self.root} has no {_CLASS_LIST}, so its classes are those of PASCAL VOC, and {name!r} is not in "
                f"{vocabulary.label}; write the folder's own classes to {_CLASS_LIST}, beginning with background, or "
                f"give --classes voc; {remedy}."
            )
        return UserError(
            f"{self.root} has the class {name!r}, which is not in {vocabulary.label}; give all classes of the folder "
            f"with --classes; {remedy}."
        )


def _by_key(folder: Path) -> dict[str, list[str]]:
    """The image files below a folder, by path without suffix. Subfolders are often links to the originals."""
    files: dict[str, list[str]] = {}
    for path in sorted(os.path.relpath(path, folder) for path in files_below(folder)):
        key, suffix = os.path.splitext(path)
        if suffix.lower() in SUFFIXES:
            files.setdefault(key, []).append(path)
    return files


def _normalised(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())
