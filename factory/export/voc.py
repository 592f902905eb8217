"""PASCAL VOC export: the usual VOC folders and image sets, and the class names in labels.txt."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from factory.dataset.masks import IGNORE, decode_label_png, encode_label_png
from factory.errors import UserError
from factory.export.interface import (
    SPLITS,
    ExportInfo,
    ExportSample,
    KeySet,
    Records,
    delete_other_samples,
    write_sample_file,
)
from factory.files.atomic import replaced_atomically, synchronise_all

_FOLDERS = {"JPEGImages": ".jpg", "SegmentationClass": ".png", "SegmentationObject": ".png", "Annotations": ".xml"}
"""The folders of the files of a sample, with their suffixes."""
_LABELS = "labels.txt"
_IMAGE_SETS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val")}


class VocFormat:
    """Palette PNGs: class numbers in SegmentationClass, object numbers in SegmentationObject, 255 is ignore.

    The number of a class is its line in labels.txt, counted from 0 for the background: its position in the vocabulary.
    Those of `--classes voc` are VOC's own numbers.
    """

    unit_bytes = 0

    def __init__(self, info: ExportInfo) -> None:
        self._info = info
        self._numbers = np.zeros(256, np.uint8)
        self._numbers[IGNORE] = IGNORE
        for category, index in info.class_indices.items():
            self._numbers[category] = index + 1

    def write(self, unit: int, samples: Iterable[ExportSample]) -> list[tuple[str, Any]]:
        """Write images, labels and boxes. The record of a sample is its key."""
        for folder in _FOLDERS:
            (self._info.root / folder).mkdir(exist_ok=True)
        records, files = [], list[Path]()
        for sample in samples:
            files += self._write_sample(sample)
            records.append((sample.split, sample.key))
        synchronise_all(files)
        return records

    def has(self, unit: int, split: str, records: Sequence[Any]) -> bool:
        """Whether all files of the samples exist."""
        root = self._info.root
        return all((root / folder / (key + suffix)).exists() for key in records for folder, suffix in _FOLDERS.items())

    def has_finished(self, records: Records) -> bool:
        """Whether the class list and the image sets exist."""
        return all(path.exists() for path in (self._info.root / _LABELS, *self._image_sets()))

    def finish(self, records: Records) -> None:
        """Write the class list and the image sets: readers of boxes use those in Main, readers of masks the others.

        Files of other samples are deleted after the lists that name them.
        """
        for path, splits in self._image_sets().items():
            path.parent.mkdir(parents=True, exist_ok=True)
            _put_lines(path, (key for split in splits for key in records.of(split)))
        _put_lines(self._info.root / _LABELS, iter(("background", *self._info.vocabulary.names)))
        keys = KeySet(key for split in SPLITS for key in records.of(split))
        for name in _FOLDERS:
            delete_other_samples(self._info.root / name, keys)

    def _image_sets(self) -> dict[Path, tuple[str, ...]]:
        """The files of the image sets, with the splits that they list."""
        folder = self._info.root / "ImageSets"
        return {
            folder / task / f"{name}.txt": splits
            for task in ("Main", "Segmentation")
            for name, splits in _IMAGE_SETS.items()
        }

    def _write_sample(self, sample: ExportSample) -> list[Path]:
        """Write the files of a sample; returns their paths."""
        root, key = self._info.root, sample.key
        classes = self._numbers[decode_label_png(sample.labels)]
        objects = np.where(classes == IGNORE, IGNORE, 0).astype(np.uint8)
        if len(sample.annotations) >= IGNORE:
            raise UserError(
                f"{key} has {len(sample.annotations)} objects, but VOC supports at most 254 per image; use --format "
                f"coco."
            )
        for number, mask in enumerate(sample.masks, 1):
            objects[mask] = number
        contents = {
            root / "JPEGImages" / f"{key}.jpg": sample.image,
            root / "SegmentationClass" / f"{key}.png": encode_label_png(classes),
            root / "SegmentationObject" / f"{key}.png": encode_label_png(objects),
            root / "Annotations" / f"{key}.xml": self._annotation(sample),
        }
        for path, content in contents.items():
            write_sample_file(path, content)
        return list(contents)

    def _annotation(self, sample: ExportSample) -> bytes:
        """The XML annotation. VOC boxes count pixels from 1 and include the last pixel."""
        names = {entry.id: entry.name for entry in self._info.vocabulary.classes}
        width, height = sample.size
        tree = ElementTree.Element("annotation")
        _add(tree, {"folder": "JPEGImages", "filename": f"{sample.key}.jpg"})
        _add(ElementTree.SubElement(tree, "source"), {"database": self._info.title})
        _add(ElementTree.SubElement(tree, "size"), {"width": width, "height": height, "depth": 3})
        _add(tree, {"segmented": 1})
        for annotation in sample.annotations:
            left, top, box_width, box_height = annotation["bbox"]
            element = ElementTree.SubElement(tree, "object")
            _add(
                element,
                {"name": names[annotation["category_id"]], "pose": "Unspecified", "truncated": 0, "difficult": 0},
            )
            box = {"xmin": left + 1, "ymin": top + 1, "xmax": left + box_width, "ymax": top + box_height}
            _add(ElementTree.SubElement(element, "bndbox"), box)
        ElementTree.indent(tree)
        text: bytes = ElementTree.tostring(tree, encoding="utf-8")
        return text + b"\n"


def _add(element: ElementTree.Element, texts: dict[str, Any]) -> None:
    for name, text in texts.items():
        ElementTree.SubElement(element, name).text = str(text)


def _put_lines(path: Path, lines: Iterator[str]) -> None:
    with replaced_atomically(path) as partial, open(partial, "w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in lines)
