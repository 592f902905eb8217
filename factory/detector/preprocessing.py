"""Image preprocessing with torch alone, for models whose processor in transformers requires torchvision.

The operations are those of torchvision's tensors, so the results are the same (`make test-extras` compares them).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from factory.dataset.records import Image
from factory.detector.hub_models import location
from factory.errors import UserError, one_line

_BILINEAR = 2
_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": _BILINEAR,
}


class Preprocessor:
    """Resizes an image to a fixed size and normalises it, with the settings of a model's image processor."""

    def __init__(self, settings: Mapping[str, Any], source: str) -> None:
        """Raises UserError if the settings in `preprocessor_config.json` ask for another kind of preprocessing."""
        settings = _DEFAULTS | {name: value for name, value in settings.items() if value is not None}
        self.size = _size(settings, source)
        self._factor = float(settings["rescale_factor"])
        self._mean, self._std = (
            torch.tensor(settings[name], dtype=torch.float32)[:, None, None] for name in ("image_mean", "image_std")
        )

    def __call__(self, image: Image) -> Tensor:
        """Float (1, 3, height, width) of an RGB uint8 image, resized as integers with antialiasing (SAM 2 and 3)."""
        pixels = _channels_first(image)
        resized = functional.interpolate(pixels, self.size, mode="bilinear", antialias=True)
        scale = 1.0 / self._factor
        return (resized.float() - self._mean * scale) / (self._std * scale)

    def resized_as_float(self, image: Image) -> Tensor:
        """As a call, but scaled to 0..1 first and resized without antialiasing, as in RF-DETR."""
        pixels = _channels_first(image) * self._factor
        resized = functional.interpolate(pixels, self.size, mode="bilinear", align_corners=False)
        return (resized - self._mean) / self._std


def read_settings(source: str, revision: str | None) -> dict[str, Any]:
    """The settings of a model's image processor; `revision` is the commit of a hub id. UserError without any."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(source, **location(source, revision))
    except Exception as error:  # a missing file, or one that is not JSON
        raise UserError(
            f"{source} has no readable preprocessor_config.json ({one_line(error, 160)}); copy the model again."
        ) from error
    return dict(settings)


def _channels_first(image: Image) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()


def _size(settings: Mapping[str, Any], source: str) -> tuple[int, int]:
    size, statistics = settings.get("size"), [settings.get(name) for name in ("image_mean", "image_std")]
    if (
        not isinstance(size, Mapping)
        or not {"height", "width"} <= size.keys()
        or not all(isinstance(values, list) and len(values) == 3 for values in statistics)
        or not all(settings[name] for name in ("do_resize", "do_rescale", "do_normalize"))
        or settings["resample"] != _BILINEAR
    ):
        raise UserError(
            f"the preprocessor_config.json of {source} does not describe what is supported: resizing to a fixed height "
            f"and width (bilinear), and normalising with image_mean and image_std; copy the model again."
        )
    return int(size["height"]), int(size["width"])
