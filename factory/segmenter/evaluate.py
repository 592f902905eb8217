"""mIoU of a segmenter over a labelled folder, counted as PASCAL VOC's devkit counts it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from factory.dataset.masks import IGNORE
from factory.errors import UserError
from factory.labelled.interface import LabelledImage
from factory.segmenter.data import Source
from factory.segmenter.model import Segmenter


@dataclass(frozen=True)
class SegmenterScore:
    """IoU by class, 0..1, and means over them.

    `miou` has background, as VOC's devkit; `seen` and `unseen` are means over classes without background, and
    `harmonic` is their harmonic mean. NaN where a class or a group has no pixel.
    """

    by_class: dict[str, float]
    miou: float
    seen: float
    unseen: float
    harmonic: float
    images: int


class Confusion:
    """Counts of pixels by (true class, predicted class), summed over the whole set; 255 is not counted."""

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes), np.int64)

    def add(self, truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> None:
        """Two label pictures of one size."""
        counted = truth != IGNORE
        size = len(self.counts)
        pairs = truth[counted].astype(np.int64) * size + predicted[counted]
        self.counts += np.bincount(pairs, minlength=size * size).reshape(size, size)

    def iou(self) -> NDArray[np.float64]:
        """By class: hits over hits, misses and false alarms; NaN for a class that is nowhere."""
        hits = np.diag(self.counts).astype(float)
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


@torch.inference_mode()
def score(
    model: Segmenter,
    source: Source,
    unseen: Sequence[str] = (),
    device: str = "cpu",
    report: Callable[[int], None] = lambda done: None,
) -> SegmenterScore:
    """Predict every image of a source in its own size and count; `report` hears after each part how many are done."""
    confusion, done = Confusion(len(model.names)), 0
    model.to(device).eval()
    for part in range(source.parts()):
        for batch in _of_one_size([row.decode() for row in source.samples(part)]):
            images = torch.from_numpy(np.stack([row.image for row in batch])).permute(0, 3, 1, 2).to(device)
            scores = model.scores(images)
            if not scores.isfinite().all():
                raise UserError(
                    f"The segmenter gives NaN for the image {batch[0].key} or one beside it; train it again."
                )
            predicted = scores.argmax(1).cpu().numpy().astype(np.uint8)
            for row, labels in zip(batch, predicted, strict=True):
                confusion.add(row.labels, labels)
            done += len(batch)
        report(done)
    return summed_up(confusion, model.names, unseen, done)


def summed_up(confusion: Confusion, names: Sequence[str], unseen: Sequence[str], images: int) -> SegmenterScore:
    """The figures of a confusion; `names` has background first."""
    by_class = dict(zip(names, confusion.iou().tolist(), strict=True))
    one = _mean([value for name, value in by_class.items() if name != names[0] and name not in unseen])
    other = _mean([value for name, value in by_class.items() if name in unseen])
    harmonic = 2 * one * other / (one + other) if one + other > 0 else float("nan")
    return SegmenterScore(by_class, _mean(list(by_class.values())), one, other, harmonic, images)


def _mean(values: list[float]) -> float:
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else float("nan")


def _of_one_size(rows: list[LabelledImage], most: int = 16) -> list[list[LabelledImage]]:
    """Neighbours of one size together, a few at a time."""
    batches: list[list[LabelledImage]] = []
    for row in rows:
        if batches and len(batches[-1]) < most and batches[-1][0].image.shape == row.image.shape:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
