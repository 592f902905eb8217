"""COCO export: images in `train/` and `val/`, annotations in `annotations/instances_{train,val}.json`."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from factory.config.vocabulary import ClassEntry, coco
from factory.dataset.masks import Mask
from factory.export.interface import (
    SPLITS,
    ExportInfo,
    ExportSample,
    KeySet,
    Records,
    delete_other_samples,
    write_sample_file,
)
from factory.export.polygons import joined, parts_of
from factory.files.atomic import replaced_atomically, synchronise_all

_SUPERCATEGORIES = {
    1: "person", 9: "vehicle", 15: "outdoor", 25: "animal", 33: "accessory", 43: "sports", 51: "kitchen", 61: "food",
    71: "furniture", 77: "electronic", 83: "appliance", 90: "indoor",
}  # fmt: skip
"""COCO's supercategories by their last category id."""


class CocoFormat:
    """Instances with official category ids; masks as compressed run lengths or polygons.

    COCO polygons do not support holes, so holes are connected to the outline by zero-width bridges; pycocotools decodes
    them to the exact mask. Image and annotation ids are unique across both splits, so the files can be merged.
    """

    unit_bytes = 0

    def __init__(self, info: ExportInfo, polygons: bool) -> None:
        self._info, self._polygons = info, polygons

    def write(self, unit: int, samples: Iterable[ExportSample]) -> list[tuple[str, Any]]:
        """Write images. The record of a sample contains its image entry and its annotations."""
        for split in SPLITS:
            (self._info.root / split).mkdir(exist_ok=True)
        records, files = [], list[Path]()
        for sample in samples:
            files.append(self._info.root / sample.split / f"{sample.key}.jpg")
            write_sample_file(files[-1], sample.image)
            annotations = [
                self._annotation(annotation, mask)
                for annotation, mask in zip(sample.annotations, sample.masks, strict=True)
            ]
            image = {name: sample.record["image"][name] for name in ("id", "file_name", "width", "height")}
            records.append((sample.split, {"image": image, "annotations": annotations}))
        synchronise_all(files)
        return records

    def has(self, unit: int, split: str, records: Sequence[Any]) -> bool:
        """Whether the images exist."""
        return all((self._info.root / split / record["image"]["file_name"]).exists() for record in records)

    def has_finished(self, records: Records) -> bool:
        """Whether the annotation files exist."""
        return all(self._annotations(split).exists() for split in SPLITS if records.count(split))

    def finish(self, records: Records) -> None:
        """Write the annotation files; a split without samples gets none. Then delete images that they do not name."""
        for split in SPLITS:
            keys = KeySet(record["image"]["file_name"].removesuffix(".jpg") for record in records.of(split))
            path = self._annotations(split)
            path.parent.mkdir(exist_ok=True)
            if keys:
                with replaced_atomically(path) as partial, open(partial, "w", encoding="ascii") as stream:
                    self._write_json(stream, records, split)
            else:
                path.unlink(missing_ok=True)
            delete_other_samples(self._info.root / split, keys)

    def _annotations(self, split: str) -> Path:
        return self._info.root / "annotations" / f"instances_{split}.json"

    def _annotation(self, source: dict[str, Any], mask: Mask) -> dict[str, Any]:
        fields = ("id", "image_id", "category_id", "segmentation", "bbox", "area", "iscrowd", "score")
        annotation = {name: source[name] for name in fields}
        if self._polygons:
            annotation["segmentation"] = [joined(part).ravel().tolist() for part in parts_of(mask)]
        return annotation

    def _write_json(self, stream: TextIO, records: Records, split: str) -> None:
        info = {"description": self._info.title, "version": self._info.fingerprint}
        categories = [
            {"id": entry.id, "name": entry.name, "supercategory": supercategory(entry)}
            for entry in self._info.vocabulary.classes
        ]
        header = {"info": info, "licenses": [], "categories": categories}
        stream.write(_compact(header).removesuffix("}"))
        _write_list(stream, "images", (record["image"] for record in records.of(split)))
        _write_list(stream, "annotations", (entry for record in records.of(split) for entry in record["annotations"]))
        stream.write("}\n")


def supercategory(entry: ClassEntry) -> str:
    """COCO's supercategory of a class; "object" for classes that COCO does not have."""
    known = coco().find(entry.name)
    if known is None:
        return "object"
    return next(name for last_id, name in _SUPERCATEGORIES.items() if known.id <= last_id)


def _write_list(stream: TextIO, name: str, entries: Iterator[Any]) -> None:
    stream.write(f',\n"{name}":[')
    for index, entry in enumerate(entries):
        stream.write((",\n" if index else "\n") + _compact(entry))
    stream.write("]")


def _compact(data: Any) -> str:
    """JSON in ASCII: pycocotools opens the file in the encoding of the locale, which is not UTF-8 everywhere."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False)
