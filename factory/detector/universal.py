"""Instance and universal segmentation models of transformers: Mask2Former, MaskFormer, RF-DETR and their like."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from factory.detector.labels import NO_CLASSES, translation
from factory.errors import UserError
from factory.libraries import quiet_model_libraries
from factory.recipe import Recipe
from factory.records import Image, Instance

_MIN_SCORE = 0.05
_MOST = 100


class UniversalDetector:
    """One instance per query of the model whose best class is one of the vocabulary's.

    Its score is the class's probability times the mean probability of its mask, as the models' own evaluations have it.
    Images are RGB; the model's own image processor brings them to its size and norms.
    """

    def __init__(self, recipe: Recipe, source: str, device: str = "cpu") -> None:
        """UserError where `source`, a folder or hub id, is no such model or misses a class that prompts name."""
        self._threads, self._device = recipe.generator.threads, device
        self._model, self._processor = _load(source, recipe.masks.detector_revision)
        self._model = self._model.to(device).eval()
        self._labels = {int(k): str(name) for k, name in self._model.config.id2label.items()}
        known = [self._labels[k] for k in sorted(self._labels)]
        self._names = translation(recipe.vocabulary(), known, recipe.planned_names())

    @torch.inference_mode()
    def detect(self, images: Sequence[Image]) -> list[list[Instance]]:
        """Instances by falling score, down to 0.05. Images of other sizes than their neighbours go alone."""
        torch.set_num_threads(self._threads)
        if len({image.shape for image in images}) > 1:
            return [self.detect([image])[0] for image in images]
        given = self._processor(images=list(images), return_tensors="pt")
        answer = self._model(**{name: value.to(self._device) for name, value in given.items() if name in _INPUTS})
        scores, masks = _scores_and_masks(answer)
        return [self._of(*pair, images[0].shape[:2]) for pair in zip(scores, masks, strict=True)]

    def _of(self, scores: Tensor, masks: Tensor, size: Sequence[int]) -> list[Instance]:
        """`scores` (queries, classes) in 0..1 and mask logits (queries, h, w) of one image."""
        best, classes = scores.max(-1)
        instances = []
        for query in best.argsort(descending=True)[:_MOST].tolist():
            label = self._labels.get(int(classes[query]), "N/A")
            if label in NO_CLASSES or label not in self._names or best[query] < _MIN_SCORE:
                continue
            logits = functional.interpolate(masks[query][None, None].float(), tuple(size), mode="bilinear")[0, 0]
            mask = logits > 0
            if not mask.any():
                continue
            score = float(best[query] * logits.sigmoid()[mask].mean())
            if score >= _MIN_SCORE:
                instances.append(Instance(self._names[label], score, np.asarray(mask.cpu())))
        return sorted(instances, key=lambda row: -row.score)


_INPUTS = ("pixel_values", "pixel_mask")


def _scores_and_masks(answer: Any) -> tuple[Tensor, Tensor]:
    """(B, queries, classes) in 0..1 without the class "none", and mask logits (B, queries, h, w)."""
    if getattr(answer, "class_queries_logits", None) is not None:
        return answer.class_queries_logits.float().softmax(-1)[..., :-1], answer.masks_queries_logits
    return answer.logits.float().sigmoid(), answer.pred_masks


def _load(source: str, revision: str | None) -> tuple[Any, Any]:
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForInstanceSegmentation,
        AutoModelForUniversalSegmentation,
    )

    quiet_model_libraries()
    from pathlib import Path

    options: dict[str, Any] = {} if Path(source).exists() else {"revision": revision}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        universal = type(config) in AutoModelForUniversalSegmentation._model_mapping
        kind = AutoModelForUniversalSegmentation if universal else AutoModelForInstanceSegmentation
        model = kind.from_pretrained(source, dtype=torch.float32, **options)
        return model, AutoImageProcessor.from_pretrained(source, **options)
    except ImportError as error:
        raise UserError(
            f"the image processor of {source} needs another library ({' '.join(str(error).split())[:150]}); install "
            f"the extra `torchvision`, see docs/detectors.md."
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{source} is no instance segmentation model of transformers ({' '.join(str(error).split())[:200]}); "
            f"docs/detectors.md lists what is."
        ) from error
