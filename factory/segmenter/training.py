"""Training a segmenter straight from shards, alone or mixed with labelled folders."""

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
from factory.segmenter.data import LabelledStream, Source
from factory.segmenter.model import Segmenter, load_segmenter, new_segmenter, save_segmenter
from factory.training.loop import rank_and_world, tile
from factory.training.precision import bfloat16_pays

_SHOWN = 12


@dataclass(frozen=True)
class SegmenterOptions:
    """`side` is the square that is trained on, in pixels."""

    architecture: str = "segformer"
    side: int = 128


class SegmenterTask:
    """Pixel classes of a vocabulary and background, on cropped, flipped and recoloured images."""

    name = "segmenter"

    def __init__(
        self,
        sources: Sequence[Source],
        vocabulary: Vocabulary,
        options: SegmenterOptions,
        device: str,
        shares: Sequence[float] | None = None,
        about: dict[str, object] | None = None,
    ) -> None:
        self.sources, self.vocabulary, self.options = sources, vocabulary, options
        self.device, self.shares, self.about = device, shares, about or {}
        self.depends_on = {
            "network": str(options),
            "classes": ", ".join(vocabulary.names),
            "data": ", ".join(one.identity for one in sources),
            "shares": str(shares),
        }
        torch.manual_seed(0)
        model = new_segmenter(options.architecture, ["background", *vocabulary.names])
        # Images come with neighbouring channels, and convolutions are faster where the weights do too.
        self.model: nn.Module = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._stream: tuple[tuple[int, int], LabelledStream] | None = None

    def loss(self, step: int, batch: int, seed: int) -> Tensor:
        """The loss of one step's batch."""
        assert isinstance(self.model, Segmenter)
        if self._stream is None or self._stream[0] != (batch, seed):
            self._stream = (batch, seed), LabelledStream(self.sources, batch, seed, self.shares)
        rank, world = rank_and_world()
        rng = np.random.default_rng((seed, 5, step, rank))
        rows = [augmented(rng, row, self.options.side) for row in self._stream[1].batch(step, rank, world)]
        images = torch.from_numpy(np.stack([image for image, _ in rows])).permute(0, 3, 1, 2).to(self.device)
        labels = torch.from_numpy(np.stack([labels for _, labels in rows])).to(self.device)
        kind = self.device.split(":")[0]
        with torch.autocast(
            kind, torch.bfloat16, enabled=bfloat16_pays(kind) and not self.model.is_mask_classification
        ):
            return self.model.loss(images, labels)

    def figures(self, model: nn.Module) -> dict[str, float]:
        """None; `factory evaluate-segmenter` measures on labelled images."""
        return {}

    def sample_sheet(self, model: nn.Module) -> Pictures.Image:
        """Training images, their labels, and what the segmenter says."""
        assert isinstance(model, Segmenter)
        rng = np.random.default_rng(0)
        parts = (row for part in range(self.sources[0].parts()) for row in self.sources[0].samples(part))
        rows = [row.decode() for row in islice(parts, _SHOWN)]
        pairs = [augmented(rng, row, self.options.side) for row in rows]
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
        """A transformers folder."""
        assert isinstance(model, Segmenter)
        save_segmenter(model, folder, self.about)

    def load(self, folder: Path) -> None:
        """Begin with a trained segmenter's weights; ValueError where its classes are others or in another order."""
        start = load_segmenter(folder)
        mine = ("background", *self.vocabulary.names)
        if start.names != mine:
            raise ValueError(f"its classes are {', '.join(start.names)}, and these are {', '.join(mine)}")
        self.model.load_state_dict(start.state_dict())


def augmented(rng: np.random.Generator, row: LabelledImage, side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A random square of the sample, uint8 (side, side, 3) and (side, side): scaled, flipped, with other colours.

    What lies outside the image is grey and to be ignored. The square has a pixel that is not to be ignored, unless the
    whole sample has none.
    """
    scale = side / min(row.labels.shape) * float(np.exp(rng.uniform(np.log(0.7), np.log(1.5))))
    size = (max(1, round(row.labels.shape[1] * scale)), max(1, round(row.labels.shape[0] * scale)))
    picture = np.asarray(Pictures.fromarray(row.image).resize(size, Pictures.Resampling.BILINEAR))
    numbers = np.asarray(Pictures.fromarray(row.labels).resize(size, Pictures.Resampling.NEAREST))
    windows = [_window(rng, length, side) for length in numbers.shape]
    image, labels = _cut(picture, numbers, windows, side)
    if (labels == IGNORE).all() and len(taught := np.argwhere(numbers != IGNORE)):
        around = taught[rng.integers(len(taught))]
        windows = [_window(rng, length, side, int(at)) for length, at in zip(numbers.shape, around, strict=True)]
        image, labels = _cut(picture, numbers, windows, side)
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    toned = (image.astype(np.float32) - 128) * rng.uniform(0.7, 1.3, 3).astype(np.float32) + 128
    toned += np.float32(rng.uniform(-24, 24))
    return np.clip(toned, 0, 255).astype(np.uint8), np.ascontiguousarray(labels)


def _cut(
    picture: NDArray[np.uint8], numbers: NDArray[np.uint8], windows: Sequence[tuple[int, int]], side: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The square that `windows` name of a picture and its labels."""
    image, labels = np.full((side, side, 3), 128, np.uint8), np.full((side, side), IGNORE, np.uint8)
    (top, low), (left, across) = windows
    height, width = min(side, numbers.shape[0]), min(side, numbers.shape[1])
    image[low : low + height, across : across + width] = picture[top : top + height, left : left + width]
    labels[low : low + height, across : across + width] = numbers[top : top + height, left : left + width]
    return image, labels


def _window(rng: np.random.Generator, length: int, side: int, around: int | None = None) -> tuple[int, int]:
    """(start in the picture, start in the square) along one axis; `around` is a place that the window must have."""
    spare = abs(length - side)
    if length <= side:
        return 0, int(rng.integers(0, spare + 1))
    low, high = (0, spare) if around is None else (max(0, around - side + 1), min(spare, around))
    return int(rng.integers(low, high + 1)), 0
