"""PASCAL VOC: JPEGImages, SegmentationClass, SegmentationObject, Annotations, ImageSets/Segmentation, labels.txt."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from factory.dataset.masks import IGNORE, decode_label_png, encode_label_png
from factory.errors import UserError
from factory.export.interface import ExportSample, Records, Subject

_FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationObject", "Annotations")
_SETS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val")}


class VocFormat:
    """Palette pictures: class numbers in SegmentationClass, object numbers in SegmentationObject, 255 to be ignored.

    The number of a class is its line in labels.txt, counted from 0, which is the background: for VOC's own classes
    they are VOC's, for others they count from 1 without gaps.
    """

    unit_bytes = 0

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._numbers = np.zeros(256, np.uint8)
        self._numbers[IGNORE] = IGNORE
        for category, place in subject.places.items():
            self._numbers[category] = place + 1

    def write(self, unit: int, samples: Iterable[ExportSample]) -> list[tuple[str, Any]]:
        """Pictures and boxes; a record is the sample's key."""
        for folder in _FOLDERS:
            (self._subject.root / folder).mkdir(exist_ok=True)
        return [(sample.split, self._write_sample(sample)) for sample in samples]

    def finish(self, records: Records) -> None:
        """The image sets and the class list."""
        sets = self._subject.root / "ImageSets" / "Segmentation"
        sets.mkdir(parents=True, exist_ok=True)
        for name, splits in _SETS.items():
            _put_lines(sets / f"{name}.txt", (key for split in splits for key in records.of(split)))
        _put_lines(self._subject.root / "labels.txt", iter(("background", *self._subject.vocabulary.names)))

    def _write_sample(self, sample: ExportSample) -> str:
        root, key = self._subject.root, sample.key
        classes = self._numbers[decode_label_png(sample.labels)]
        objects = np.where(classes == IGNORE, IGNORE, 0).astype(np.uint8)
        if len(sample.objects) >= IGNORE:
            raise UserError(
                f"{key} has {len(sample.objects)} objects, VOC's pictures have room for 254; export it as coco."
            )
        for number, mask in enumerate(sample.masks, 1):
            objects[mask] = number
        (root / "JPEGImages" / f"{key}.jpg").write_bytes(sample.image)
        (root / "SegmentationClass" / f"{key}.png").write_bytes(encode_label_png(classes))
        (root / "SegmentationObject" / f"{key}.png").write_bytes(encode_label_png(objects))
        (root / "Annotations" / f"{key}.xml").write_bytes(self._annotation(sample))
        return key

    def _annotation(self, sample: ExportSample) -> bytes:
        """Boxes as VOC counts them: from 1, the last pixel within."""
        names = {entry.id: entry.name for entry in self._subject.vocabulary.classes}
        width, height = sample.size
        tree = ElementTree.Element("annotation")
        _add(tree, {"folder": "JPEGImages", "filename": f"{sample.key}.jpg"})
        _add(ElementTree.SubElement(tree, "source"), {"database": self._subject.title})
        _add(ElementTree.SubElement(tree, "size"), {"width": width, "height": height, "depth": 3})
        _add(tree, {"segmented": 1})
        for row in sample.objects:
            left, top, wide, high = row["bbox"]
            thing = ElementTree.SubElement(tree, "object")
            _add(thing, {"name": names[row["category_id"]], "pose": "Unspecified", "truncated": 0, "difficult": 0})
            box = {"xmin": left + 1, "ymin": top + 1, "xmax": left + wide, "ymax": top + high}
            _add(ElementTree.SubElement(thing, "bndbox"), box)
        ElementTree.indent(tree)
        text: bytes = ElementTree.tostring(tree, encoding="utf-8")
        return text + b"\n"


def _add(element: ElementTree.Element, texts: dict[str, Any]) -> None:
    for name, text in texts.items():
        ElementTree.SubElement(element, name).text = str(text)


def _put_lines(path: Path, lines: Iterator[str]) -> None:
    partial = path.with_suffix(".partial")
    with open(partial, "w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in lines)
    os.replace(partial, path)
