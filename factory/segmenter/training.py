"""The training task of a segmenter, on shards, labelled folders or both."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pictures
from torch import Tensor, nn

from factory.config.vocabulary import Vocabulary
from factory.dataset.masks import IGNORE, palette_image
from factory.labelled.interface import LabelledImage
from factory.segmenter.data import LabelledSource
from factory.segmenter.model import Segmenter, load_segmenter, new_segmenter, save_segmenter
from factory.segmenter.sizes import scaled_size
from factory.training.precision import autocast
from factory.training.processes import rank_and_world
from factory.training.sheet import tile
from factory.training.stream import SampleStream

_SHEET_SAMPLES = 12


@dataclass(frozen=True)
class SegmenterOptions:
    """`side` is the side of the square training crops in pixels."""

    architecture: str = "segformer"
    side: int = 128


class SegmenterTask:
    """Semantic segmentation into background and the classes of a vocabulary, on augmented crops."""

    name = "segmenter"

    def __init__(
        self,
        sources: Sequence[LabelledSource],
        vocabulary: Vocabulary,
        options: SegmenterOptions,
        device: str,
        shares: Sequence[float] | None = None,
        metadata: dict[str, object] | None = None,
    ) -> None:
        self.sources, self.vocabulary, self.options = sources, vocabulary, options
        self.device, self.shares, self.metadata = device, shares, metadata or {}
        self.depends_on = {
            "network": str(options),
            "classes": ", ".join(vocabulary.names),
            "data": ", ".join(source.identity for source in sources),
            "shares": str(shares),
        }
        torch.manual_seed(0)
        model = new_segmenter(options.architecture, ["background", *vocabulary.names])
        # Images are in the channels-last layout; convolutions are faster if the weights are, too.
        self.model: nn.Module = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._stream: tuple[tuple[int, int], SampleStream[LabelledImage]] | None = None

    def loss(self, step: int, batch: int, seed: int) -> Tensor:
        """The loss of one step's batch."""
        assert isinstance(self.model, Segmenter)
        crops = self._crops(step, batch, seed)
        images = torch.from_numpy(np.stack([image for image, _ in crops])).permute(0, 3, 1, 2).to(self.device)
        labels = torch.from_numpy(np.stack([labels for _, labels in crops])).to(self.device)
        with autocast(self.device, enabled=not self.model.is_mask_classification):
            return self.model.loss(images, labels)

    def _crops(self, step: int, batch: int, seed: int) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """The augmented samples of this process. Those of all processes together do not depend on their number."""
        if self._stream is None or self._stream[0] != (batch, seed):
            self._stream = (batch, seed), SampleStream(self.sources, batch, seed, self.shares)
        rank, world = rank_and_world()
        return [
            augmented(np.random.default_rng((seed, 5, step, rank + position * world)), sample, self.options.side)
            for position, sample in enumerate(self._stream[1].batch(step, rank, world))
        ]

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """No metrics during training; `factory evaluate-segmenter` measures on labelled images."""
        return {}

    def sample_sheet(self, model: nn.Module) -> Pictures.Image:
        """Training images, their labels and the predictions."""
        assert isinstance(model, Segmenter)
        rng = np.random.default_rng(0)
        source = self.sources[0]
        lazy = (sample for part in range(source.parts()) for sample in source.samples(part))
        pairs = [augmented(rng, sample.decode(), self.options.side) for sample in islice(lazy, _SHEET_SAMPLES)]
        images = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2).to(self.device)
        predicted = model.scores(images).argmax(1).cpu().numpy().astype(np.uint8)
        return tile(
            [
                [Pictures.fromarray(image) for image, _ in pairs],
                [palette_image(labels).convert("RGB") for _, labels in pairs],
                [palette_image(labels).convert("RGB") for labels in predicted],
            ]
        )

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a transformers folder."""
        assert isinstance(model, Segmenter)
        save_segmenter(model, folder, self.metadata)

    def load(self, folder: Path) -> None:
        """Load the weights of a trained segmenter. ValueError if its classes or their order differ."""
        start = load_segmenter(folder)
        names = ("background", *self.vocabulary.names)
        if start.names != names:
            raise ValueError(f"its classes are {', '.join(start.names)}, but this run has {', '.join(names)}")
        self.model.load_state_dict(start.state_dict())


def augmented(
    rng: np.random.Generator, sample: LabelledImage, side: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A random square crop of the sample, uint8 (side, side, 3) and (side, side), scaled, flipped and recoloured.

    Pixels outside the image are grey and ignored. The crop contains a pixel that is not ignored, unless the sample has
    none.
    """
    scale = side / min(sample.labels.shape) * float(np.exp(rng.uniform(np.log(0.7), np.log(1.5))))
    height, width = scaled_size(sample.labels.shape, scale)
    size = width, height
    scaled_image = np.asarray(Pictures.fromarray(sample.image).resize(size, Pictures.Resampling.BILINEAR))
    scaled_labels = np.asarray(Pictures.fromarray(sample.labels).resize(size, Pictures.Resampling.NEAREST))
    windows = [_window(rng, length, side) for length in scaled_labels.shape]
    image, labels = _crop(scaled_image, scaled_labels, windows, side)
    if (labels == IGNORE).all() and len(labelled := np.argwhere(scaled_labels != IGNORE)):
        centre = labelled[rng.integers(len(labelled))]
        windows = [_window(rng, length, side, int(p)) for length, p in zip(scaled_labels.shape, centre, strict=True)]
        image, labels = _crop(scaled_image, scaled_labels, windows, side)
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    toned = (image.astype(np.float32) - 128) * rng.uniform(0.7, 1.3, 3).astype(np.float32) + 128
    toned += np.float32(rng.uniform(-24, 24))
    return np.clip(toned, 0, 255).astype(np.uint8), np.ascontiguousarray(labels)


def _crop(
    full_image: NDArray[np.uint8], full_labels: NDArray[np.uint8], windows: Sequence[tuple[int, int]], side: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The square crop of an image and its labels that is given by a window per axis."""
    image, labels = np.full((side, side, 3), 128, np.uint8), np.full((side, side), IGNORE, np.uint8)
    (top, to_top), (left, to_left) = windows
    height, width = min(side, full_labels.shape[0]), min(side, full_labels.shape[1])
    source = slice(top, top + height), slice(left, left + width)
    target = slice(to_top, to_top + height), slice(to_left, to_left + width)
    image[target], labels[target] = full_image[source], full_labels[source]
    return image, labels


def _window(rng: np.random.Generator, length: int, side: int, required: int | None = None) -> tuple[int, int]:
    """A random (start in the image, start in the crop) along one axis. The window contains the position `required`."""
    slack = abs(length - side)
    if length <= side:
        return 0, int(rng.integers(0, slack + 1))
    low, high = (0, slack) if required is None else (max(0, required - side + 1), min(slack, required))
    return int(rng.integers(low, high + 1)), 0
