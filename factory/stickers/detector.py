"""The embedded detector: a semantic segmentation network whose connected regions are instances."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional
from transformers import UperNetForSemanticSegmentation

from factory.errors import UserError, counted, one_line

MIN_SCORE = 0.5
"""Minimum score of an instance that counts as found."""
_SIDES = (144, 176)
"""Test-time augmentation: the predictions for an image and its mirror image at these sides in pixels are averaged.

The network recognises objects only in a small range of sizes. Averaging over the mirror image makes the masks of a
mirrored image the mirrored masks.
"""
_MIN_AREA = 0.004
"""Area of the smallest instance as a share of the image."""
_MIN_MASK = 0.5
"""Smallest mask of an instance as a share of the region in which it was found."""


@dataclass(frozen=True)
class DetectedInstance:
    """One detected object. `box_xyxy` is in pixels with exclusive ends; `mask` is bool (height, width)."""

    class_name: str
    score: float
    box_xyxy: tuple[int, int, int, int]
    mask: NDArray[np.bool_]


class StickerDetector:
    """Detects the 80 COCO classes in images of the embedded text-to-image model.

    An instance is a connected region of pixels of one class; its score is their mean probability of that class.
    Touching objects of one class are therefore one instance, and an object that is divided by another one is two
    instances.

    The network was trained with a low weight of background pixels (`background_weight` in its config.json), which
    multiplies the odds of every class: objects are found more often, but drawn too large. The mask of an instance
    therefore only has the pixels at which its class is more probable than background without this weight. If they are
    less than half of the region, the object is uncertain, and its mask is the region.
    """

    def __init__(self, network: UperNetForSemanticSegmentation, device: str = "cpu") -> None:
        self.device = device
        self.network = network.to(device, memory_format=torch.channels_last).eval()
        labels = network.config.id2label
        self.class_names = tuple(labels[k] for k in range(1, len(labels)))
        self.background_weight = float(getattr(network.config, "background_weight", 1.0))

    @classmethod
    def from_pretrained(cls, folder: Path | str, device: str = "cpu") -> "StickerDetector":
        """Load a folder that the training recipe wrote. UserError if it is not a detector or incomplete."""
        if not _is_detector(Path(folder) / "config.json"):
            raise UserError(
                f"{folder} is not a detector folder; give one that `factory stickers train detector` has written."
            )
        try:
            network, report = UperNetForSemanticSegmentation.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # truncated and unrelated weights raise many kinds of errors
            raise UserError(f"the detector {folder} cannot be loaded ({one_line(error)}); copy it again.") from error
        mismatched = sorted([*report["missing_keys"], *report["unexpected_keys"]])
        if mismatched:
            raise UserError(
                f"the weights of {folder} do not match its config.json: "
                f"{counted(len(mismatched), 'tensor is', 'tensors are')} missing or unknown, such as {mismatched[0]}. "
                f"Copy the whole model again."
            )
        weight = getattr(network.config, "background_weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 1:
            raise UserError(
                f"background_weight in {Path(folder) / 'config.json'} is {weight!r}; it must be a number above 0 and "
                f"at most 1. Copy the detector again."
            )
        return cls(network, device)

    @torch.no_grad()
    def detect(self, images: Sequence[Image.Image]) -> list[list[DetectedInstance]]:
        """The instances in each RGB image, by descending score. All images of a call must have the same size."""
        if not images:
            return []
        pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images])).to(self.device)
        scores, classes, inside = (part.cpu().numpy() for part in self._decide(pixels))
        return [self._instances(*image) for image in zip(scores, classes, inside, strict=True)]

    @torch.no_grad()
    def labels(self, pixels: Tensor) -> Tensor:
        """The class of each pixel, int64 (B, H, W), 0 for background, of uint8 RGB (B, H, W, 3)."""
        _, classes, inside = self._decide(pixels)
        return classes.where(inside, 0)

    def _decide(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(largest probability, its class, whether this class is in the mask) of each pixel, (B, H, W)."""
        probabilities = self.probabilities(pixels)
        scores, classes = probabilities.max(dim=1)
        return scores, classes, scores * self.background_weight > probabilities[:, 0]

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Class probabilities, float32 (B, 81, H, W), background first, of uint8 RGB (B, H, W, 3)."""
        views = [self._probabilities_at(pixels, side) for side in _SIDES]
        views += [self._probabilities_at(pixels.flip(2), side).flip(3) for side in _SIDES]
        return torch.stack(views).mean(0)

    def _probabilities_at(self, pixels: Tensor, side: int) -> Tensor:
        height, width = pixels.shape[1:3]
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            logits = self.network(pixel_values=network_input(pixels, side)).logits
        return functional.interpolate(logits.float(), (height, width), mode="bilinear").softmax(dim=1)

    def _instances(
        self, scores: NDArray[np.float32], classes: NDArray[np.int64], inside: NDArray[np.bool_]
    ) -> list[DetectedInstance]:
        instances = []
        for label in np.unique(classes[classes > 0]):
            regions, count = ndimage.label(classes == label)
            for region in range(1, count + 1):
                found = regions == region
                if found.sum() < max(1.0, _MIN_AREA * found.size):
                    continue
                mask = found & inside
                if mask.sum() < _MIN_MASK * found.sum():
                    mask = found
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
                instances.append(DetectedInstance(self.class_names[label - 1], float(scores[found].mean()), box, mask))
        return sorted(instances, key=lambda instance: -instance.score)


def network_input(pixels: Tensor, side: int) -> Tensor:
    """Convert uint8 RGB (B, H, W, 3) to the network's input, float32 (B, 3, side, side) in -1..1."""
    planes = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    resized = functional.interpolate(planes, (side, side), mode="bilinear", antialias=True)
    return resized.contiguous(memory_format=torch.channels_last)


def _is_detector(config: Path) -> bool:
    """Whether a config.json is that of a detector; transformers would load another model with a wrong message."""
    try:
        return bool(json.loads(config.read_text(encoding="utf-8"))["model_type"] == "upernet")
    except (OSError, ValueError, KeyError, TypeError):
        return False
