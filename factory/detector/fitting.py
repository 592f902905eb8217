"""What all detectors need: threads, and batches that can be detected at once."""

from collections.abc import Collection, Sequence

import torch

from factory.dataset.records import Image, Instance
from factory.detector.interface import Detector
from factory.generator.memory import FittingParts

_Item = tuple[Image, Collection[str] | None]


class FittingDetector:
    """A detector on the recipe's number of CPU threads, as the generator is.

    Batches that do not fit into GPU memory are divided. Images of mixed sizes are processed one at a time: padding to
    the largest would change what is detected.
    """

    def __init__(self, detector: Detector, name: str, threads: int) -> None:
        self._detector, self._threads = detector, threads
        self._parts = FittingParts(f"the detector {name} and one image", "detects objects in")

    def detect(self, images: Sequence[Image], classes: Sequence[Collection[str]] | None = None) -> list[list[Instance]]:
        """The instances in each image."""

        def detect(part: Sequence[_Item]) -> list[list[Instance]]:
            of_part = [names for _, names in part if names is not None]
            return self._detector.detect([image for image, _ in part], None if classes is None else of_part)

        torch.set_num_threads(self._threads)
        names = [None] * len(images) if classes is None else classes
        items = list(zip(images, names, strict=True))
        if len({image.shape for image in images}) > 1:
            return [self._parts.apply(detect, [item])[0] for item in items]
        return self._parts.apply(detect, items)
