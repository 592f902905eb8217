"""SAM 2: masks for boxes."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from factory.dataset.records import Image
from factory.detector.hub_models import load_complete
from factory.detector.preprocessing import Preprocessor, read_settings
from factory.errors import UserError

_TOGETHER = 16
"""Number of masks that are enlarged to the size of the image at a time, to limit memory."""
_DEFAULTS = {
    "size": {"height": 1024, "width": 1024},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
_MEMORY = ("memory_", "mask_downsample.", "object_pointer_proj", "no_object_pointer", "occlusion_spatial_embedding")
"""Tensors of the memory for videos, which published weights contain and images do not need."""


class Sam2Masks:
    """SAM 2 with boxes as prompts: one mask for each box."""

    def __init__(self, source: str, revision: str | None, device: str) -> None:
        from transformers import Sam2Model

        self._preprocess = Preprocessor(_DEFAULTS | read_settings(source, revision), source)
        self._model = load_complete(Sam2Model, source, revision, _MEMORY).to(device)
        size = self._model.prompt_encoder.input_image_size  # of both sides; boxes are divided by it
        if self._preprocess.size != (size, size):
            height, width = self._preprocess.size
            raise UserError(
                f"the preprocessor_config.json of {source} resizes images to {height} x {width} pixels, but its boxes "
                f"refer to {size} x {size}; copy the model again."
            )
        self._device = device

    def masks(self, image: Image, boxes: Tensor) -> NDArray[np.bool_]:
        """Bool (N, H, W) for `boxes`, float (N, 4): left, top, right and bottom in pixels of the image."""
        height, width = image.shape[:2]
        if not len(boxes):
            return np.zeros((0, height, width), bool)
        embeddings = self._model.get_image_embeddings(self._preprocess(image).to(self._device))
        scale = self._preprocess.size[0]
        factors = torch.tensor([scale / width, scale / height] * 2, dtype=torch.float32, device=self._device)
        output = self._model(
            image_embeddings=embeddings, input_boxes=(boxes.to(self._device) * factors)[None], multimask_output=False
        )
        logits = output.pred_masks[0]  # (N, 1, h, w)
        parts = [
            functional.interpolate(part, (height, width), mode="bilinear", align_corners=False)[:, 0] > 0
            for part in logits.split(_TOGETHER)
        ]
        return torch.cat(parts).cpu().numpy()
