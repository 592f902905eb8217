"""CLIPSeg: a fast, coarse mask for each class; the image is encoded once."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor
from torch.nn import functional

from factory.dataset.records import Image, Instance
from factory.detector.hub_models import load_complete, load_image_processor, load_tokenizer

_THRESHOLD = 0.4


class ClipSegFinder:
    """One mask per class: the pixels whose most probable class it is, with a probability of at least 0.4.

    The score is the mean probability of these pixels. CLIPSeg does not separate instances.
    """

    default_score = _THRESHOLD

    def __init__(self, source: str, revision: str | None, device: str, min_score: float) -> None:
        from transformers import CLIPSegForImageSegmentation

        self._processor = load_image_processor(source, revision)
        self._tokenizer = load_tokenizer(source, revision)
        self._model = load_complete(CLIPSegForImageSegmentation, source, revision).to(device)
        self._device, self._min_score = device, min_score

    def find(self, image: Image, texts: Mapping[str, str]) -> list[Instance]:
        """The mask of each class that is found; `texts` holds the words for each class."""
        logits = self._logits(image, list(texts.values()))
        probabilities = functional.interpolate(
            logits[:, None], (image.shape[0], image.shape[1]), mode="bilinear", align_corners=False
        )[:, 0].sigmoid()
        best = probabilities.argmax(0)
        found = []
        for position, class_name in enumerate(texts):
            mask = (best == position) & (probabilities[position] > _THRESHOLD)
            if mask.any():
                score = float(probabilities[position][mask].mean())
                if score > self._min_score:
                    found.append(Instance(class_name, score, np.asarray(mask.cpu())))
        return found

    def _logits(self, image: Image, texts: list[str]) -> Tensor:
        """Float (classes, h, w) of the forward pass of transformers, which would encode the image for each class."""
        model = self._model
        pixels = self._processor(images=[image], return_tensors="pt", input_data_format="channels_last")
        tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self._device)
        vision = model.clip.get_image_features(
            pixel_values=pixels["pixel_values"].to(self._device), interpolate_pos_encoding=True,
            output_hidden_states=True,
        )  # fmt: skip
        activations = [vision.hidden_states[layer + 1].expand(len(texts), -1, -1) for layer in model.extract_layers]
        embeddings = model.get_conditional_embeddings(
            batch_size=len(texts), input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        )
        logits: Tensor = model.decoder(activations, embeddings).logits
        return logits
