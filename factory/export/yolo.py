"""YOLO segmentation export: images/{train,val}, labels/{train,val} and data.yaml."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

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
from factory.files.atomic import synchronise_all, write_atomically

_DATA = "data.yaml"


class YoloFormat:
    """One line per object: its class index and one polygon, relative to width and height.

    The parts and holes of an object are joined by zero-width bridges, because each line stands for one object.
    """

    unit_bytes = 0

    def __init__(self, info: ExportInfo) -> None:
        self._info = info

    def write(self, unit: int, samples: Iterable[ExportSample]) -> list[tuple[str, Any]]:
        """Write images and labels. The record of a sample is its key."""
        root = self._info.root
        for split in SPLITS:
            (root / "images" / split).mkdir(parents=True, exist_ok=True)
            (root / "labels" / split).mkdir(parents=True, exist_ok=True)
        records, files = [], list[Path]()
        for sample in samples:
            image, labels = self._files(sample.split, sample.key)
            # The labels first: for readers, an image without labels has no objects.
            write_sample_file(labels, self._lines(sample).encode())
            write_sample_file(image, sample.image)
            files += [image, labels]
            records.append((sample.split, sample.key))
        synchronise_all(files)
        return records

    def has(self, unit: int, split: str, records: Sequence[Any]) -> bool:
        """Whether the images and labels exist."""
        return all(path.exists() for key in records for path in self._files(split, key))

    def has_finished(self, records: Records) -> bool:
        """Whether data.yaml exists."""
        return (self._info.root / _DATA).exists()

    def finish(self, records: Records) -> None:
        """Write data.yaml. It has no `path`, so paths are relative to it. An empty split refers to the other one."""
        for split in SPLITS:
            keys = KeySet(records.of(split))
            for kind in ("images", "labels"):
                delete_other_samples(self._info.root / kind / split, keys)
        non_empty = [split for split in SPLITS if records.count(split)]
        data = {split: f"images/{split if split in non_empty else non_empty[0]}" for split in SPLITS}
        names = dict(enumerate(self._info.vocabulary.names))
        text = yaml.safe_dump({**data, "names": names}, sort_keys=False, allow_unicode=True)
        write_atomically(self._info.root / _DATA, f"# {self._info.title}\n{text}".encode())

    def _files(self, split: str, key: str) -> tuple[Path, Path]:
        """The image and the labels of a sample."""
        root = self._info.root
        return root / "images" / split / f"{key}.jpg", root / "labels" / split / f"{key}.txt"

    def _lines(self, sample: ExportSample) -> str:
        lines = []
        for annotation, mask in zip(sample.annotations, sample.masks, strict=True):
            polygon = joined([ring for part in parts_of(mask) for ring in part]) / np.array(sample.size)
            points = " ".join(f"{value:.6f}" for value in polygon.ravel().tolist())
            lines.append(f"{self._info.class_indices[annotation['category_id']]} {points}\n")
        return "".join(lines)
