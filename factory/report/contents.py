"""Sums over all samples of a dataset: classes, objects, image quality and agreement.

Memory does not grow with the samples, except for the image hashes, which take 8 bytes per sample.
"""

from bisect import bisect_right
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.config.plan import Plan
from factory.config.recipe import Recipe
from factory.report.funnel import proportion
from factory.report.histogram import Histogram, Scale
from factory.report.receipt_sums import ReceiptSums
from factory.report.shard_measures import IMAGE_SCORES, ShardMeasures

SCALES = {
    "luminance": Scale(0, 255, 51),
    "contrast": Scale(0, 128, 64),
    "dark": Scale(-4, 0, 48),
    "bright": Scale(-4, 0, 48),
    "sharpness": Scale(0, 5, 50),
    "confidence": Scale(0, 1, 50),
    "detector_iou": Scale(0, 1, 50),
}
AREA_SCALE = Scale(-4, 0, 48)
"""log10 of an object's share of its image."""
COCO_SIZES = ("small", "medium", "large")
_COCO_LIMITS = (32**2, 96**2)
"""Areas in pixels below which an object is small or medium."""
CENTRE_CELLS = 16
AGREEMENT_CELLS = 20


class Contents:
    """Adds up the measures of shards; `images`, `objects`, `classes` and `agreement` return them as plain data."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._vocabulary = recipe, recipe.vocabulary().classes
        self._row = np.full(256, -1)
        self._row[[entry.id for entry in self._vocabulary]] = np.arange(len(self._vocabulary))
        self._row_of_name = {entry.name: row for row, entry in enumerate(self._vocabulary)}
        count = len(self._vocabulary)
        self._scores = {name: Histogram(scale) for name, scale in SCALES.items()}
        self._area = Histogram(AREA_SCALE)
        self._made, self._attempts = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._sizes, self._area_sums = np.zeros((count, len(COCO_SIZES)), np.int64), np.zeros(count)
        self._pairs = np.zeros((count, count), np.int64)
        self._centres = np.zeros((CENTRE_CELLS, CENTRE_CELLS), np.int64)
        self._per_image: Counter[int] = Counter()
        self._image_sizes: Counter[tuple[int, int]] = Counter()
        self._agreement = np.zeros((AGREEMENT_CELLS, AGREEMENT_CELLS), np.int64)
        self._moments = np.zeros(6)
        self._hashes: list[NDArray[np.uint64]] = []
        self._indices: list[NDArray[np.int64]] = []
        self._shards: list[tuple[int, int]] = []
        self.samples = 0

    def add(self, shard: ShardMeasures) -> None:
        """Add the measures of a shard."""
        self.samples += len(shard.samples)
        self._shards.append((self.samples, shard.shard))
        scores = np.array(shard.scores, np.float64).reshape(-1, len(IMAGE_SCORES))
        for column, name in enumerate(IMAGE_SCORES):
            self._scores[name].add(scores[:, column])
        self._add_agreement(scores[:, -2], scores[:, -1])
        self._add_objects(np.array(shard.objects, np.float64).reshape(-1, 5))
        self._image_sizes.update(shard.sizes)
        self._hashes.append(np.array(shard.hashes, np.uint64))
        self._indices.append(np.array(shard.indices, np.int64))
        for names, rejected, ids in shard.samples:
            rows = [self._row_of_name[name] for name in names if name in self._row_of_name]
            self._made[rows] += 1
            self._attempts[rows] += 1 + rejected
            self._per_image[len(ids)] += 1
            present = sorted({int(self._row[number]) for number in ids} - {-1})
            for first, second in combinations(present, 2):
                self._pairs[first, second] += 1

    def _add_objects(self, objects: NDArray[np.float64]) -> None:
        rows = self._row[objects[:, 0].astype(np.int64)]
        in_vocabulary = rows >= 0
        size = np.searchsorted(_COCO_LIMITS, objects[:, 1], side="right")
        np.add.at(self._sizes, (rows[in_vocabulary], size[in_vocabulary]), 1)
        np.add.at(self._area_sums, rows[in_vocabulary], objects[in_vocabulary, 2])
        self._area.add(np.log10(objects[:, 2]))
        cells = np.clip((objects[:, 3:] * CENTRE_CELLS).astype(np.int64), 0, CENTRE_CELLS - 1)
        np.add.at(self._centres, (cells[:, 1], cells[:, 0]), 1)

    def _add_agreement(self, confidence: NDArray[np.float64], iou: NDArray[np.float64]) -> None:
        recorded = np.isfinite(confidence) & np.isfinite(iou)
        x, y = confidence[recorded], iou[recorded]
        cells = [np.clip((values * AGREEMENT_CELLS).astype(np.int64), 0, AGREEMENT_CELLS - 1) for values in (y, x)]
        np.add.at(self._agreement, tuple(cells), 1)
        self._moments += [len(x), x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]

    def hashes(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """(image hashes, sample indices), each (N,)."""
        hashes, indices = [np.zeros(0, np.uint64), *self._hashes], [np.zeros(0, np.int64), *self._indices]
        return np.concatenate(hashes), np.concatenate(indices)

    def shard_of(self, position: int) -> int:
        """The shard of the sample at a position in `hashes`."""
        return self._shards[bisect_right(self._shards, position, key=lambda entry: entry[0])][1]

    def images(self) -> dict[str, Any]:
        """Image quality: one histogram per score, and the most frequent image sizes."""
        sizes = [{"width": width, "height": height, "count": count}
                 for (width, height), count in self._image_sizes.most_common(5)]  # fmt: skip
        names = ("luminance", "contrast", "dark", "bright", "sharpness")
        return {"sizes": sizes, "scores": {name: self._scores[name].to_dict() for name in names}}

    def objects(self) -> dict[str, Any]:
        """Sizes, positions and combinations of objects. `pairs` are (class, class, images), most frequent first."""
        names = [entry.name for entry in self._vocabulary]
        nonzero = np.argwhere(self._pairs).tolist()
        pairs = [[names[first], names[second], int(self._pairs[first, second])] for first, second in nonzero]
        return {
            "count": int(self._centres.sum()),
            "sizes": dict(zip(COCO_SIZES, self._sizes.sum(0).tolist(), strict=True)),
            "area": self._area.to_dict(),
            "centres": self._centres.tolist(),
            "per_image": {str(count): self._per_image[count] for count in sorted(self._per_image)},
            "pairs": sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1])),
        }

    def agreement(self) -> dict[str, Any]:
        """The lowest mask score of each image against its agreement with the detector, where both are recorded.

        `cells[i][j]` counts images by IoU (row i, ascending) and confidence (column j).
        """
        count, x, y, xx, yy, xy = self._moments.tolist()
        variance_product = (count * xx - x * x) * (count * yy - y * y)
        return {
            "confidence": self._scores["confidence"].to_dict(),
            "detector_iou": self._scores["detector_iou"].to_dict(),
            "both": int(count),
            "cells": self._agreement.tolist(),
            "correlation": round((count * xy - x * y) / variance_product**0.5, 4) if variance_product > 1e-9 else None,
        }

    def classes(self, plan: Plan, receipts: ReceiptSums) -> list[dict[str, Any]]:
        """One row per class: samples whose prompt names it (planned, made, exhausted), its yield and its objects."""
        planned, exhausted = plan.class_totals(self._recipe.n), np.zeros_like(self._made)
        for index in receipts.exhausted:
            if index < self._recipe.n:
                exhausted[[self._row_of_name[name] for name in plan.class_names(index)]] += 1
        attempts, rows = self._attempts + exhausted * self._recipe.attempts, []
        for row, entry in enumerate(self._vocabulary):
            objects = int(self._sizes[row].sum())
            rows.append(
                {
                    "id": entry.id,
                    "name": entry.name,
                    "planned": planned[entry.name],
                    "made": int(self._made[row]),
                    "exhausted": int(exhausted[row]),
                    "yield": proportion(int(self._made[row]), int(attempts[row])),
                    "objects": objects,
                    "sizes": dict(zip(COCO_SIZES, self._sizes[row].tolist(), strict=True)),
                    "mean_area": round(float(self._area_sums[row]) / objects, 6) if objects else None,
                }
            )
        return rows
