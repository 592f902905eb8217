"""mIoU of a segmenter on a labelled folder, computed as in the PASCAL VOC devkit."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from factory.dataset.masks import IGNORE
from factory.labelled.interface import LabelledImage
from factory.segmenter.data import LabelledSource
from factory.segmenter.model import Segmenter

_MAX_BATCH = 16
_MAX_BATCH_PIXELS = 16 * 512 * 512
"""A batch contains fewer images if they are large, because the scores of a pixel take four bytes per class."""


@dataclass(frozen=True)
class SegmenterScore:
    """IoU by class, 0 to 1, and means over classes.

    `miou` includes background, as in the VOC devkit. `seen` and `unseen` are means over classes without background, and
    `harmonic` is their harmonic mean. Values are NaN for a class or group without pixels.
    """

    by_class: dict[str, float]
    miou: float
    seen: float
    unseen: float
    harmonic: float
    images: int


class Confusion:
    """Pixel counts by (true class, predicted class), summed over all images; 255 is ignored."""

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes), np.int64)

    def add(self, truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> None:
        """Count the pixels of one image, given two label maps (H, W) of the same size."""
        counted = truth != IGNORE
        size = len(self.counts)
        pairs = truth[counted].astype(np.int64) * size + predicted[counted]
        self.counts += np.bincount(pairs, minlength=size * size).reshape(size, size)

    def iou(self) -> NDArray[np.float64]:
        """IoU by class, float64 (classes,); NaN for a class that neither label map contains."""
        hits = np.diag(self.counts).astype(float)
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


@torch.inference_mode()
def score(
    model: Segmenter,
    source: LabelledSource,
    unseen: Sequence[str] = (),
    device: str = "cpu",
    report: Callable[[int], None] = lambda done: None,
) -> SegmenterScore:
    """Compare the predictions for every image of a source with its labels, in the size of the image.

    `report` receives the number of images done after each part.
    """
    confusion, done = Confusion(len(model.names)), 0
    model.to(device).eval()
    for part in range(source.parts()):
        for batch in _by_size((sample.decode() for sample in source.samples(part)), model.input_size):
            images = torch.from_numpy(np.stack([sample.image for sample in batch])).permute(0, 3, 1, 2).to(device)
            predicted = model.labels(images).cpu().numpy().astype(np.uint8)
            for sample, labels in zip(batch, predicted, strict=True):
                confusion.add(sample.labels, labels)
            done += len(batch)
        report(done)
    return summarise(confusion, model.names, unseen, done)


def summarise(confusion: Confusion, names: Sequence[str], unseen: Sequence[str], images: int) -> SegmenterScore:
    """The metrics of a confusion matrix; `names` starts with background."""
    by_class = dict(zip(names, confusion.iou().tolist(), strict=True))
    seen_iou = _mean([value for name, value in by_class.items() if name != names[0] and name not in unseen])
    unseen_iou = _mean([value for name, value in by_class.items() if name in unseen])
    total = seen_iou + unseen_iou
    harmonic = 0.0 if total == 0 else 2 * seen_iou * unseen_iou / total  # NaN if a group has no pixels
    return SegmenterScore(by_class, _mean(list(by_class.values())), seen_iou, unseen_iou, harmonic, images)


def _mean(values: list[float]) -> float:
    defined = [value for value in values if value == value]  # without NaN
    return float(np.mean(defined)) if defined else float("nan")


def _by_size(
    samples: Iterable[LabelledImage], input_size: Callable[[int, int], tuple[int, int]]
) -> Iterator[list[LabelledImage]]:
    """Batches of consecutive images of the same size; only one batch and one more image are in memory.

    `input_size` gives the (height, width) in which the network reads an image, which can be larger than the image.
    """
    batch: list[LabelledImage] = []
    for sample in samples:
        height, width = sample.labels.shape
        pixels = max(height * width, math.prod(input_size(height, width)))
        fits = len(batch) < min(_MAX_BATCH, _MAX_BATCH_PIXELS // pixels)
        if batch and not (fits and batch[0].image.shape == sample.image.shape):
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch
