"""Segmenters from transformers behind one pair of functions: the loss of a batch, and class scores of every pixel."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    Mask2FormerConfig,
    MaskFormerConfig,
    SegformerConfig,
    SwinConfig,
)

from factory.errors import UserError
from factory.masks import IGNORE

ARCHITECTURES = ("segformer", "maskformer", "mask2former")
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class Segmenter(nn.Module):
    """A model of transformers and the classes that it tells apart; class 0 is background.

    Models that label pixels (SegFormer and its like) learn by cross-entropy; models that propose masks (MaskFormer,
    Mask2Former) by their own loss on one mask per class.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        config: Any = network.config
        self.names = tuple(names)
        self.proposes = config.model_type in ("maskformer", "mask2former")

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """`images` are uint8 (B, 3, H, W), `labels` uint8 (B, H, W) with 255 to be ignored."""
        if not self.proposes:
            logits = self.network(pixel_values=self._normed(images)).logits.float()
            logits = functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
            return functional.cross_entropy(logits, labels.long(), ignore_index=IGNORE)
        masks, classes = [], []
        for row in labels:
            present = [int(k) for k in row.unique() if k != IGNORE]
            masks.append(torch.stack([row == k for k in present]).float())
            classes.append(torch.tensor(present, device=row.device))
        result: Tensor = self.network(pixel_values=self._normed(images), mask_labels=masks, class_labels=classes).loss
        return result.mean()

    def scores(self, images: Tensor) -> Tensor:
        """Class scores, float32 (B, classes, H, W), of uint8 images (B, 3, H, W): the highest is a pixel's class."""
        answer = self.network(pixel_values=self._normed(images))
        if self.proposes:
            classes = answer.class_queries_logits.float().softmax(-1)[..., :-1]
            masks = answer.masks_queries_logits.float().sigmoid()
            scores = torch.einsum("bqc,bqhw->bchw", classes, masks)
        else:
            scores = answer.logits.float()
        return functional.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=False)

    def _normed(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(row, device=images.device)[None, :, None, None] for row in (_MEAN, _STD))
        return (images.float() / 255 - mean) / std


def new_segmenter(architecture: str, names: Sequence[str]) -> Segmenter:
    """Fresh weights of one of ARCHITECTURES, or those of a folder or hub id with a new last layer.

    `names` are the classes with background first. UserError for what is neither.
    """
    labels = dict(enumerate(names))
    told: dict[str, Any] = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    if architecture not in ARCHITECTURES:
        return Segmenter(_pretrained(architecture, told), names)
    return Segmenter(_fresh(architecture, told), names)


def _fresh(architecture: str, told: dict[str, Any]) -> nn.Module:
    if architecture == "segformer":  # the sizes of B0
        network: nn.Module = AutoModelForSemanticSegmentation.from_config(SegformerConfig(**told))
        return network
    backbone = SwinConfig(out_features=["stage1", "stage2", "stage3", "stage4"])  # Swin-T
    kind = MaskFormerConfig if architecture == "maskformer" else Mask2FormerConfig
    proposer: nn.Module = AutoModelForUniversalSegmentation.from_config(kind(backbone_config=backbone, **told))
    return proposer


def _pretrained(source: str, told: dict[str, Any]) -> nn.Module:
    try:
        config = AutoConfig.from_pretrained(source)
        proposes = config.model_type in ("maskformer", "mask2former")
        kind = AutoModelForUniversalSegmentation if proposes else AutoModelForSemanticSegmentation
        network: nn.Module = kind.from_pretrained(source, ignore_mismatched_sizes=True, **told)
    except (OSError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"{source} is no segmentation model ({said}); give {', '.join(ARCHITECTURES)}, a folder or a hub id."
        ) from error
    return network


def save_segmenter(model: Segmenter, folder: Path, about: dict[str, Any]) -> None:
    """A transformers folder, and `segmenter.json` with what it learnt from."""
    network: Any = model.network
    network.save_pretrained(folder)
    (folder / "segmenter.json").write_text(json.dumps({"names": list(model.names), **about}, indent=1) + "\n")


def load_segmenter(folder: Path) -> Segmenter:
    """What `save_segmenter` wrote. UserError where the folder holds no segmenter."""
    try:
        names = json.loads((folder / "segmenter.json").read_text())["names"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} holds no segmenter ({error}); train one with `factory train-segmenter`.") from error
    labels = dict(enumerate(names))
    told = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    return Segmenter(_pretrained(str(folder), told), names).eval()
