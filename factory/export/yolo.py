"""YOLO segmentation: images/train, images/val, labels/train, labels/val and data.yaml."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import yaml

from factory.export.folder import put
from factory.export.interface import SPLITS, ExportSample, Records, Subject
from factory.export.polygons import joined, parts_of


class YoloFormat:
    """A line per object: the class's place in data.yaml, from 0, and one polygon in shares of width and height.

    The parts of an object and its holes are joined over bridges without width, for several lines would be several
    objects.
    """

    unit_bytes = 0

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def write(self, unit: int, samples: Iterable[ExportSample]) -> list[tuple[str, Any]]:
        """Images and labels; a record is the sample's key."""
        root = self._subject.root
        for split in SPLITS:
            (root / "images" / split).mkdir(parents=True, exist_ok=True)
            (root / "labels" / split).mkdir(parents=True, exist_ok=True)
        records = []
        for sample in samples:
            (root / "images" / sample.split / f"{sample.key}.jpg").write_bytes(sample.image)
            (root / "labels" / sample.split / f"{sample.key}.txt").write_text(self._lines(sample))
            records.append((sample.split, sample.key))
        return records

    def finish(self, records: Records) -> None:
        """data.yaml, without a path: its readers look beside it. An empty split is pointed to the other one."""
        full = [split for split in SPLITS if records.count(split)]
        data = {split: f"images/{split if split in full else full[0]}" for split in SPLITS}
        names = dict(enumerate(self._subject.vocabulary.names))
        text = yaml.safe_dump({**data, "names": names}, sort_keys=False, allow_unicode=True)
        put(self._subject.root / "data.yaml", f"# {self._subject.title}\n{text}".encode())

    def _lines(self, sample: ExportSample) -> str:
        lines = []
        for row, mask in zip(sample.objects, sample.masks, strict=True):
            polygon = joined([ring for part in parts_of(mask) for ring in part]) / np.array(sample.size)
            points = " ".join(f"{value:.6f}" for value in polygon.ravel().tolist())
            lines.append(f"{self._subject.places[row['category_id']]} {points}\n")
        return "".join(lines)
