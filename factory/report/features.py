"""A summary of the images: the mean of random Fourier features of the backbone of the embedded detector.

The squared distance of two such means is the squared maximum mean discrepancy (MMD) under a Gaussian kernel, as in CMMD
(Jayasumana et al., 2024), which uses CLIP. The embedded detector was trained on drawings, so distances can be compared
between nights, but not with published values. 512 numbers per dataset replace its images.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.dataset.records import Image
from factory.files.embedded_models import detector_folder

IMAGES = 1000
"""Approximate number of images whose features are computed; all images of a smaller dataset."""
FREQUENCIES = 256
BANDWIDTH = 0.4
"""Standard deviation of the Gaussian kernel; typical images of one dataset are 0.57 apart."""
_BATCH = 32

Floats = NDArray[np.float64]


class FeatureMean:
    """Adds up the features of images in batches; `to_dict` returns their mean."""

    def __init__(self) -> None:
        self._pending: list[Image] = []
        self._network: Any = None
        self._sum, self._count = np.zeros(2 * FREQUENCIES), 0

    def add(self, images: Sequence[Image]) -> None:
        """Add images, uint8 RGB (128, 128, 3)."""
        self._pending += images
        while len(self._pending) >= _BATCH:
            self._process(self._pending[:_BATCH])
            del self._pending[:_BATCH]

    def to_dict(self) -> dict[str, Any] | None:
        """The mean as plain data; None without images."""
        if self._pending:
            self._process(self._pending)
            self._pending = []
        if not self._count:
            return None
        mean = (self._sum / self._count).round(6).tolist()
        return {"model": _model_digest(), "images": self._count, "bandwidth": BANDWIDTH, "mean": mean}

    def _process(self, images: Sequence[Image]) -> None:
        self._sum += fourier_features(self._backbone_features(images)).sum(0)
        self._count += len(images)

    def _backbone_features(self, images: Sequence[Image]) -> Floats:
        """float64 (N, C): the feature maps of all four stages, averaged over the image; each row has length 1.

        The early stages respond to colours and textures, which the last stage largely ignores.
        """
        import torch
        from torch.nn import functional

        from factory.hf_logging import quiet_model_libraries
        from factory.stickers.detector import StickerDetector, network_input

        if self._network is None:
            quiet_model_libraries()
            self._network = StickerDetector.from_pretrained(detector_folder()).network
        pixels = torch.from_numpy(np.stack(images))
        with torch.no_grad():
            maps = self._network.backbone(network_input(pixels, pixels.shape[1])).feature_maps
        parts = torch.cat([functional.normalize(stage.mean((2, 3)), dim=1) for stage in maps], dim=1)
        features: Floats = functional.normalize(parts.double(), dim=1).numpy()
        return features


def fourier_features(features: Floats) -> Floats:
    """float64 (N, 2 * FREQUENCIES), whose inner products approximate a Gaussian kernel; each row has length 1."""
    # RandomState, because its numbers are the same in every version of numpy.
    frequencies = np.random.RandomState(0).standard_normal((features.shape[1], FREQUENCIES)) / BANDWIDTH
    angles = features @ frequencies
    mapped: Floats = np.concatenate([np.cos(angles), np.sin(angles)], 1) / np.sqrt(FREQUENCIES)
    return mapped


def squared_mmd(first: Floats, first_count: int, second: Floats, second_count: int) -> float:
    """The unbiased estimate of the squared MMD from two means; below 0 by chance if the images are alike."""
    return _within(first, first_count) + _within(second, second_count) - 2 * float(first @ second)


def _within(mean: Floats, count: int) -> float:
    """The mean kernel value of two different images of one dataset."""
    return (count * float(mean @ mean) - 1) / (count - 1) if count > 1 else 1.0


def _model_digest() -> str:
    """Identifies the network: means of different networks cannot be compared."""
    weights = sorted(detector_folder().glob("*.safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()[:16]
