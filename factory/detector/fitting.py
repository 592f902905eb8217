"""Divides batches that do not fit into GPU memory."""

from collections.abc import Collection, Sequence

from factory.dataset.records import Image, Instance
from factory.detector.interface import Detector
from factory.generator.memory import FittingParts

_Item = tuple[Image, Collection[str] | None]


class FittingDetector:
    """A detector whose batches are divided if they do not fit into GPU memory."""

    def __init__(self, detector: Detector, name: str) -> None:
        self._detector = detector
        self._parts = FittingParts(f"the detector {name} and one image", "detects objects in")

    def detect(self, images: Sequence[Image], classes: Sequence[Collection[str]] | None = None) -> list[list[Instance]]:
        """The instances in each image."""

        def detect(part: Sequence[_Item]) -> list[list[Instance]]:
            of_part = [names for _, names in part if names is not None]
            return self._detector.detect([image for image, _ in part], None if classes is None else of_part)

        names = [None] * len(images) if classes is None else classes
        return self._parts.apply(detect, list(zip(images, names, strict=True)))
