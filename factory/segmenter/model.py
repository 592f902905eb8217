"""Segmenters from transformers behind one pair of functions: the loss of a batch, and class scores of every pixel."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
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

from factory.dataset.masks import IGNORE
from factory.errors import UserError
from factory.files.strict_json import dumps

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
        self.is_mask_classification = config.model_type in ("maskformer", "mask2former")

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """`images` are uint8 (B, 3, H, W), `labels` uint8 (B, H, W) with 255 to be ignored.

        An image whose pixels are all to be ignored teaches nothing; a batch of such images has a loss of 0.
        """
        counted = labels != IGNORE
        if not self.is_mask_classification:
            logits = self.network(pixel_values=self._normed(images)).logits.float()
            logits = functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
            summed = functional.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="sum")
            return summed / counted.sum().clamp_min(1)
        taught = counted.flatten(1).any(1)
        if not taught.any():
            answer = self.network(pixel_values=self._normed(images))
            return 0 * (answer.class_queries_logits.sum() + answer.masks_queries_logits.sum())
        masks, classes = [], []
        for row in labels[taught]:
            present = [int(k) for k in row.unique() if k != IGNORE]
            masks.append(torch.stack([row == k for k in present]).float())
            classes.append(torch.tensor(present, device=row.device))
        shown = self._normed(images[taught])
        result: Tensor = self.network(pixel_values=shown, mask_labels=masks, class_labels=classes).loss
        return result.mean()

    def scores(self, images: Tensor) -> Tensor:
        """Class scores, float32 (B, classes, H, W), of uint8 images (B, 3, H, W): the highest is a pixel's class."""
        answer = self.network(pixel_values=self._normed(images))
        if self.is_mask_classification:
            classes = answer.class_queries_logits.float().softmax(-1)[..., :-1]
            masks = answer.masks_queries_logits.float().sigmoid()
            scores = torch.einsum("bqc,bqhw->bchw", classes, masks)
        else:
            scores = answer.logits.float()
        return functional.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=False)

    def _normed(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(row, device=images.device)[None, :, None, None] for row in (_MEAN, _STD))
        return (images.float() / 255 - mean) / std


@dataclass(frozen=True)
class _Wrong:
    """Names of weights that a file does not give as they are wanted; transformers draws the first two at random.

    `mismatched` have another shape; those of `classifier` differ just by the number of classes.
    """

    missing: list[str]
    mismatched: list[str]
    classifier: list[str]
    unexpected: list[str]


def new_segmenter(architecture: str, names: Sequence[str]) -> Segmenter:
    """Fresh weights of one of ARCHITECTURES, or those of a folder or hub id with a new head.

    `names` are the classes with background first. UserError for what is neither, and for weights that are incomplete.
    """
    labels = dict(enumerate(names))
    told: dict[str, Any] = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    if architecture in ARCHITECTURES:
        return Segmenter(_fresh(architecture, told), names)
    network, wrong = _pretrained(architecture, told)
    _check_only_head_is_new(architecture, network, wrong)
    return Segmenter(network, names)


def _check_only_head_is_new(source: str, network: Any, wrong: _Wrong) -> None:
    """UserError unless the file gives the whole network but the classifier of other classes, or the whole body.

    A body without a head is one that was trained on ImageNet. A head of which some tensors are there was cut.
    """
    body = f"{network.base_model_prefix}."
    head = {name for name in network.state_dict() if not name.startswith(body)}
    lacking = [name for name in wrong.missing if name.startswith(body)]
    lacking += [] if head <= {*wrong.missing} else [name for name in wrong.missing if name in head]
    lacking += [name for name in wrong.mismatched if name not in wrong.classifier]
    if lacking:
        raise UserError(
            f"{source} does not give {len(lacking)} of its network's weights, {lacking[0]} first; only those of its "
            f"head may be new, all of them or its classifier. Copy the model again."
        )
    unknown = [name for name in wrong.unexpected if name.startswith(body)]
    if unknown:
        raise UserError(
            f"{source} holds {len(unknown)} weights that its config.json does not have, {unknown[0]} first: the two do "
            f"not belong together. Copy the model again."
        )


def _fresh(architecture: str, told: dict[str, Any]) -> nn.Module:
    if architecture == "segformer":  # the sizes of B0
        network: nn.Module = AutoModelForSemanticSegmentation.from_config(SegformerConfig(**told))
        return network
    backbone = SwinConfig(out_features=["stage1", "stage2", "stage3", "stage4"])  # Swin-T
    kind = MaskFormerConfig if architecture == "maskformer" else Mask2FormerConfig
    proposer: nn.Module = AutoModelForUniversalSegmentation.from_config(kind(backbone_config=backbone, **told))
    return proposer


def _pretrained(source: str, told: dict[str, Any]) -> tuple[nn.Module, _Wrong]:
    """The network of a folder or hub id, and what its file does not give.

    UserError for what is no segmentation model, and for weights that are no finite numbers.
    """
    try:
        config = AutoConfig.from_pretrained(source)
        is_mask_classification = config.model_type in ("maskformer", "mask2former")
        kind = AutoModelForUniversalSegmentation if is_mask_classification else AutoModelForSemanticSegmentation
        network, loading = kind.from_pretrained(source, ignore_mismatched_sizes=True, output_loading_info=True, **told)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"{source} is no segmentation model ({said}); give {', '.join(ARCHITECTURES)}, a folder or a hub id."
        ) from error
    broken = [name for name, value in network.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"The weight {broken[0]} of {source} holds NaN or infinity; train or copy the model again.")
    more = len(told["id2label"]) - config.num_labels
    return network, _Wrong(
        missing=sorted(loading["missing_keys"]),
        mismatched=sorted(row[0] for row in loading["mismatched_keys"]),
        classifier=[
            name
            for name, theirs, ours in loading["mismatched_keys"]
            if theirs[1:] == ours[1:] and ours[0] - theirs[0] == more
        ],
        unexpected=sorted(loading["unexpected_keys"]),
    )


def save_segmenter(model: Segmenter, folder: Path, about: dict[str, Any]) -> None:
    """A transformers folder, and `segmenter.json` with what it learnt from."""
    network: Any = model.network
    network.save_pretrained(folder)
    (folder / "segmenter.json").write_text(dumps({"names": list(model.names), **about}, indent=1) + "\n")


def load_segmenter(folder: Path) -> Segmenter:
    """What `save_segmenter` wrote. UserError where the folder holds no segmenter."""
    try:
        names = json.loads((folder / "segmenter.json").read_text())["names"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} holds no segmenter ({error}); train one with `factory train-segmenter`.") from error
    labels = dict(enumerate(names))
    told = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    network, wrong = _pretrained(str(folder), told)
    listed = [
        f"{len(keys)} {kind} ({keys[0]})"
        for kind, keys in (("missing", wrong.missing), ("mismatched", wrong.mismatched), ("unknown", wrong.unexpected))
        if keys
    ]
    if listed:
        raise UserError(
            f"The weights of {folder} do not fit its config: {', '.join(listed)}; copy or train the segmenter again."
        )
    return Segmenter(network, names).eval()
