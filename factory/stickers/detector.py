"""The embedded detector: a semantic segmentation network whose connected regions are the instances."""

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

from factory.errors import UserError

INPUT_SIDE = 160
"""Pictures are resized to this many pixels square before they enter the network."""
_SIDES = (128, INPUT_SIDE)
"""Each picture is looked at in these sizes, every other time mirrored: the network knows objects in few sizes, and the
mean of two looks is worth 3.5 points of mIoU on renders."""
_MIN_AREA = 0.004
"""Smallest instance, as a share of the picture."""


@dataclass(frozen=True)
class DetectedInstance:
    """One found object. `box_xyxy` is in pixels, ends exclusive; `mask` is bool (height, width)."""

    class_name: str
    score: float
    box_xyxy: tuple[int, int, int, int]
    mask: NDArray[np.bool_]


class StickerDetector:
    """Finds the 80 classes of the sticker world.

    An instance is a connected region of pixels of one class; its score is their mean probability of that class.
    Touching objects of one class are therefore one instance, and one that another object cuts in two is two.
    """

    def __init__(self, network: UperNetForSemanticSegmentation, device: str = "cpu") -> None:
        self.device = device
        self.network = network.to(device, memory_format=torch.channels_last).eval()
        labels = network.config.id2label
        self.class_names = tuple(labels[k] for k in range(1, len(labels)))

    @classmethod
    def from_pretrained(cls, folder: Path | str, device: str = "cpu") -> "StickerDetector":
        """Load a folder that the training recipe wrote. Raises UserError where it is none, or is not complete."""
        if not (Path(folder) / "config.json").exists():
            raise UserError(
                f"{folder} holds no detector; make one with `factory stickers train detector` or name its folder."
            )
        try:
            network, report = UperNetForSemanticSegmentation.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # truncated and foreign weights fail in many ways
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"the detector {folder} cannot be loaded ({said}); copy it again.") from error
        wrong = sorted([*report["missing_keys"], *report["unexpected_keys"]])
        if wrong:
            raise UserError(
                f"the weights of {folder} do not fit its config.json: {len(wrong)} tensors are missing or unknown, as "
                f"{wrong[0]}. Copy the whole model again."
            )
        return cls(network, device)

    @torch.no_grad()
    def detect(self, images: Sequence[Image.Image]) -> list[list[DetectedInstance]]:
        """The instances in each RGB picture, by falling score. The pictures of one call share one size."""
        if not images:
            return []
        pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images])).to(self.device)
        probabilities = self.probabilities(pixels).cpu()
        scores, classes = probabilities.max(dim=1)
        return [self._instances(s, c) for s, c in zip(scores.numpy(), classes.numpy(), strict=True)]

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Class probabilities, float32 (B, 81, H, W), background first, of uint8 RGB (B, H, W, 3)."""
        views = [self._seen(pixels, side) for side in _SIDES[::2]]
        views += [self._seen(pixels.flip(2), side).flip(3) for side in _SIDES[1::2]]
        return torch.stack(views).mean(0)

    def _seen(self, pixels: Tensor, side: int) -> Tensor:
        height, width = pixels.shape[1:3]
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            logits = self.network(pixel_values=network_input(pixels, side)).logits
        return functional.interpolate(logits.float(), (height, width), mode="bilinear").softmax(dim=1)

    def _instances(self, scores: NDArray[np.float32], classes: NDArray[np.int64]) -> list[DetectedInstance]:
        found = []
        for number in np.unique(classes[classes > 0]):
            regions, count = ndimage.label(classes == number)
            for region in range(1, count + 1):
                mask = regions == region
                if mask.sum() < max(1.0, _MIN_AREA * mask.size):
                    continue
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
                found.append(DetectedInstance(self.class_names[number - 1], float(scores[mask].mean()), box, mask))
        return sorted(found, key=lambda instance: -instance.score)


def network_input(pixels: Tensor, side: int = INPUT_SIDE) -> Tensor:
    """uint8 RGB (B, H, W, 3) to the network's input, float32 (B, 3, side, side) in -1..1."""
    planes = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    resized = functional.interpolate(planes, (side, side), mode="bilinear", antialias=True)
    return resized.contiguous(memory_format=torch.channels_last)
