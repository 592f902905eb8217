"""Boxes for words: GroundingDINO, MM-GroundingDINO and OWLv2 of transformers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factory.dataset.records import Image
from factory.detector.hub_models import load_complete, load_image_processor, load_tokenizer
from factory.detector.open_texts import joined, owlv2_query


@dataclass(frozen=True)
class Boxes:
    """N boxes of one image: class names, float scores (N) and float (N, 4) left, top, right, bottom in pixels."""

    class_names: list[str]
    scores: Tensor
    corners: Tensor


class GroundingDinoBoxes:
    """All classes are named in one text. A box belongs to the class with its most probable token.

    Scores and boxes are those of `post_process_grounded_object_detection`. Instead of a class, the library returns the
    words of all probable tokens, which may be parts of several names.
    """

    default_score = 0.25

    def __init__(self, source: str, revision: str | None, device: str, min_score: float) -> None:
        from transformers import AutoModelForZeroShotObjectDetection

        self._processor = load_image_processor(source, revision)
        self._tokenizer = load_tokenizer(source, revision)
        self._model = load_complete(AutoModelForZeroShotObjectDetection, source, revision).to(device)
        self._device, self._min_score = device, min_score

    def boxes(self, image: Image, texts: Mapping[str, str]) -> Boxes:
        """The boxes with a score above the minimum; `texts` holds the words for each class."""
        pixels = self._processor(images=[image], return_tensors="pt", input_data_format="channels_last")
        parts = [self._detect(pixels, names, texts, image.shape) for names in self._groups(texts)]
        names = [name for part in parts for name in part.class_names]
        return Boxes(names, torch.cat([p.scores for p in parts]), torch.cat([p.corners for p in parts]))

    def _detect(self, pixels: Any, names: Sequence[str], texts: Mapping[str, str], shape: Sequence[int]) -> Boxes:
        text, spans = joined([texts[name] for name in names])
        encoded = self._tokenizer(text, return_tensors="pt", return_offsets_mapping=True, return_token_type_ids=True)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        output = self._model(
            **encoded.to(self._device), pixel_values=pixels["pixel_values"].to(self._device),
            pixel_mask=pixels["pixel_mask"].to(self._device),
        )  # fmt: skip
        probabilities = output.logits[0].sigmoid().cpu()  # (queries, tokens)
        class_tokens = [[k for k, (a, b) in enumerate(offsets) if start <= a < b <= end] for start, end in spans]
        by_class = torch.stack([probabilities[:, tokens].amax(1) for tokens in class_tokens], 1)
        scores, best = by_class.max(1)
        keep = scores > self._min_score
        height, width = shape[:2]
        corners = _corners(output.pred_boxes[0].cpu()[keep]) * torch.tensor([width, height] * 2, dtype=torch.float32)
        return Boxes([names[k] for k in best[keep].tolist()], scores[keep], corners)

    def _groups(self, texts: Mapping[str, str]) -> list[list[str]]:
        """The class names, divided into groups whose text is not longer than the model reads."""
        limit = int(self._model.config.max_text_len)
        groups: list[list[str]] = [[]]
        for name in texts:
            text, _ = joined([texts[other] for other in [*groups[-1], name]])
            if groups[-1] and len(self._tokenizer(text, verbose=False).input_ids) > limit:
                groups.append([])
            groups[-1].append(name)
        return groups


class Owlv2Boxes:
    """Each class is a query "a photo of a dog". Scores, boxes and classes are those of the library."""

    default_score = 0.1

    def __init__(self, source: str, revision: str | None, device: str, min_score: float) -> None:
        from transformers import Owlv2ForObjectDetection

        self._processor = load_image_processor(source, revision)
        self._tokenizer = load_tokenizer(source, revision)
        self._model = load_complete(Owlv2ForObjectDetection, source, revision).to(device)
        self._device, self._min_score = device, min_score

    def boxes(self, image: Image, texts: Mapping[str, str]) -> Boxes:
        """The boxes with a score above the minimum; `texts` holds the words for each class."""
        names = list(texts)
        queries = [owlv2_query(text) for text in texts.values()]
        pixels = self._processor(images=[image], return_tensors="pt", input_data_format="channels_last")
        tokens = self._tokenizer(queries, padding="max_length", truncation=True, return_tensors="pt")
        output = self._model(
            input_ids=tokens.input_ids.to(self._device), attention_mask=tokens.attention_mask.to(self._device),
            pixel_values=pixels["pixel_values"].to(self._device),
        )  # fmt: skip
        (result,) = self._processor.post_process_object_detection(
            output, threshold=self._min_score, target_sizes=[image.shape[:2]]
        )
        classes = [names[label] for label in result["labels"].tolist()]
        return Boxes(classes, result["scores"].cpu(), result["boxes"].cpu())


def _corners(centred: Tensor) -> Tensor:
    """(x, y, width, height) of centres as left, top, right and bottom."""
    centre, size = centred[:, :2], centred[:, 2:]
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], 1)
