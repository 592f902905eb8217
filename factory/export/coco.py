"""COCO: images in `train/` and `val/`, and `annotations/instances_train.json` and `instances_val.json`."""

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from factory.config.vocabulary import ClassEntry, coco
from factory.dataset.masks import Mask
from factory.errors import UserError
from factory.export.interface import SPLITS, ExportSample, Records, Subject
from factory.export.polygons import joined, parts_of

_SUPERCATEGORIES = {
    1: "person", 9: "vehicle", 15: "outdoor", 25: "animal", 33: "accessory", 43: "sports", 51: "kitchen", 61: "food",
    71: "furniture", 77: "electronic", 83: "appliance", 90: "indoor",
}  # fmt: skip
"""COCO's supercategories, each with the last of its ids."""


class CocoFormat:
    """Instances with official category ids; masks as compressed run lengths, or as polygons if asked for.

    A polygon's holes are reached over bridges without width, for COCO's polygons know no holes: pycocotools makes the
    very mask of it. Ids of images and annotations are those of the shards, so both files can be joined.
    """

    unit_bytes = 0

    def __init__(self, subject: Subject, polygons: bool) -> None:
        self._subject, self._polygons = subject, polygons

    def write(self, unit: int, samples: Iterable[ExportSample]) -> list[tuple[str, Any]]:
        """Images; a record is the image's row and those of its annotations."""
        for split in SPLITS:
            (self._subject.root / split).mkdir(exist_ok=True)
        records = []
        for sample in samples:
            (self._subject.root / sample.split / f"{sample.key}.jpg").write_bytes(sample.image)
            annotations = [self._annotation(*one) for one in zip(sample.objects, sample.masks, strict=True)]
            image = {name: sample.row["image"][name] for name in ("id", "file_name", "width", "height")}
            records.append((sample.split, {"image": image, "annotations": annotations}))
        return records

    def finish(self, records: Records) -> None:
        """The annotation files; none for a split without samples."""
        folder = self._subject.root / "annotations"
        folder.mkdir(exist_ok=True)
        for split in SPLITS:
            if not records.count(split):
                continue
            path = folder / f"instances_{split}.json"
            partial = path.with_suffix(".partial")
            with open(partial, "w", encoding="utf-8") as stream:
                self._write_json(stream, records, split)
            os.replace(partial, path)

    def _annotation(self, row: dict[str, Any], mask: Mask) -> dict[str, Any]:
        kept = ("id", "image_id", "category_id", "segmentation", "bbox", "area", "iscrowd", "score")
        annotation = {name: row[name] for name in kept}
        if self._polygons:
            annotation["segmentation"] = [joined(part).ravel().tolist() for part in parts_of(mask)]
        return annotation

    def _write_json(self, stream: TextIO, records: Records, split: str) -> None:
        info = {"description": self._subject.title, "version": self._subject.fingerprint}
        categories = [
            {"id": entry.id, "name": entry.name, "supercategory": supercategory(entry)}
            for entry in self._subject.vocabulary.classes
        ]
        head = {"info": info, "licenses": [], "categories": categories}
        stream.write(_compact(head).removesuffix("}"))
        _write_list(stream, "images", (record["image"] for record in records.of(split)))
        _write_list(stream, "annotations", (row for record in records.of(split) for row in record["annotations"]))
        stream.write("}\n")


def supercategory(entry: ClassEntry) -> str:
    """COCO's group of a class that COCO knows, "object" for others."""
    try:
        known = coco().resolve(entry.name).id
    except UserError:
        return "object"
    return next(name for last, name in _SUPERCATEGORIES.items() if known <= last)


def _write_list(stream: TextIO, name: str, rows: Iterator[Any]) -> None:
    stream.write(f',\n"{name}":[')
    for place, row in enumerate(rows):
        stream.write((",\n" if place else "\n") + _compact(row))
    stream.write("]")


def _compact(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
