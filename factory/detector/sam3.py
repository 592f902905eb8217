"""SAM 3 by text: the image is encoded once, then each class is a query."""

from collections.abc import Mapping

import torch
from torch.nn import functional

from factory.dataset.records import Image, Instance
from factory.detector.hub_models import load_complete, load_tokenizer
from factory.detector.open_texts import SAM3_LENGTH
from factory.detector.preprocessing import Preprocessor, read_settings

_MASK_THRESHOLD = 0.5
_DEFAULTS = {"size": {"height": 1008, "width": 1008}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_TRACKER = ("tracker_model.", "tracker_neck.")
"""Tensors of the video tracker, which published weights contain and images do not need."""


class Sam3Finder:
    """A score is sigmoid(logit) times the probability that the image shows the class at all, as in transformers."""

    default_score = 0.3

    def __init__(self, source: str, revision: str | None, device: str, min_score: float) -> None:
        from transformers import Sam3Model

        self._preprocess = Preprocessor(_DEFAULTS | read_settings(source, revision), source)
        self._tokenizer = load_tokenizer(source, revision)
        self._model = load_complete(Sam3Model, source, revision, _TRACKER).to(device)
        self._device, self._min_score = device, min_score

    def find(self, image: Image, texts: Mapping[str, str]) -> list[Instance]:
        """The instances of each class; `texts` holds the words for each class."""
        vision = self._model.get_vision_features(pixel_values=self._preprocess(image).to(self._device))
        found = []
        for class_name, text in texts.items():
            tokens = self._tokenizer(
                [text], padding="max_length", max_length=SAM3_LENGTH, truncation=True, return_tensors="pt"
            ).to(self._device)
            output = self._model(vision_embeds=vision, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
            scores = (output.pred_logits.sigmoid() * output.presence_logits.sigmoid())[0]
            keep = scores > self._min_score
            masks = _resized(output.pred_masks[0, keep].sigmoid(), (image.shape[0], image.shape[1]))
            pairs = zip(scores[keep].tolist(), (masks > _MASK_THRESHOLD).cpu().numpy(), strict=True)
            found += [Instance(class_name, score, mask) for score, mask in pairs]
        return found


def _resized(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Probabilities (N, h, w) in the size of the image."""
    if not len(masks):
        return masks.new_zeros((0, *size))
    return functional.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0]
