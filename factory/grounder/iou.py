"""Intersection over union, as in the result tables."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.dataset.masks import IGNORE


class IoUMeter:
    """Accumulates intersections and unions, by class and by image.

    Ignored pixels are not counted. `miou` pools the pixels of a class over all images and averages over classes;
    `image_miou` is the mean IoU of all objects of all images.
    """

    def __init__(self) -> None:
        self.overlap: Counter[str] = Counter()
        self.union: Counter[str] = Counter()
        self.of_images: list[float] = []
        self.images = self.predicted = self.true = 0

    def add(self, classes: Sequence[str], predicted: NDArray[Any], truth: NDArray[Any]) -> None:
        """Add one image: labels (H, W), in which k is the k-th of `classes`."""
        counted = truth != IGNORE
        self.images += 1
        for k, name in enumerate(classes, 1):
            mask, true_mask = (predicted == k) & counted, truth == k
            overlap, union = int((mask & true_mask).sum()), int((mask | true_mask).sum())
            self.overlap[name] += overlap
            self.union[name] += union
            self.predicted += int(mask.sum())
            self.true += int(true_mask.sum())
            self.of_images.append(overlap / union if union else 0.0)

    @property
    def miou(self) -> float:
        """0..1; NaN if no image was added."""
        return self.miou_of(self.union)

    def miou_of(self, names: Collection[str]) -> float:
        """The mIoU over some classes."""
        shares = [self.overlap[name] / union for name, union in self.union.items() if union and name in names]
        return float(np.mean(shares)) if shares else float("nan")

    @property
    def area(self) -> float:
        """The area of all predicted masks relative to that of the true ones; NaN if there are none."""
        return self.predicted / self.true if self.true else float("nan")

    @property
    def image_miou(self) -> float:
        """0..1; NaN if no image was added."""
        return float(np.mean(self.of_images)) if self.of_images else float("nan")
