"""Segmentation models of transformers behind one interface: the loss of a batch, and class scores for every pixel."""

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
from factory.errors import UserError, one_line
from factory.files.atomic import write_atomically
from factory.files.hub import check_not_gated
from factory.files.paths import expanded
from factory.files.strict_json import dumps
from factory.segmenter.classes import ARCHITECTURES, STORED, stored_segmenter
from factory.segmenter.sizes import scaled_size
from factory.training.processes import mean_over_batch

_MASK_CLASSIFIERS = {"maskformer": "MaskFormerImageProcessor", "mask2former": "Mask2FormerImageProcessor"}
"""The types in config.json of models that classify masks instead of pixels, and their image processors."""
_LONGEST_EDGE = 100_000
"""A limit that no image reaches; the image processors of models that classify masks require one."""
_MAX_SCORES = 2**28
"""Scores in the size of the images that exist at a time: 1 GiB."""
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class Segmenter(nn.Module):
    """A transformers model and the names of its classes; class 0 is background.

    Models that classify pixels, such as SegFormer, are trained with cross-entropy. Models that classify masks
    (MaskFormer, Mask2Former) are trained with their own loss on one mask per class.

    `side` is the side of the training crops in pixels, None if it is unknown. In training, an image is scaled so that
    its shorter side is about as long as a crop; `scores` scales it to exactly this length.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], side: int | None = None) -> None:
        super().__init__()
        self.network, self.side = network, side
        config: Any = network.config
        self.names = tuple(names)
        self.is_mask_classification = config.model_type in _MASK_CLASSIFIERS

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of uint8 images (B, 3, H, W) and uint8 labels (B, H, W), in which 255 is ignored.

        An image whose pixels are all ignored does not contribute; a batch of such images has a loss of 0.
        """
        counted = labels != IGNORE
        if not self.is_mask_classification:
            logits = self.network(pixel_values=self._normalised(images)).logits.float()
            logits = functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
            summed = functional.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="sum")
            return mean_over_batch(summed, counted.sum())
        labelled = counted.flatten(1).any(1)
        if not labelled.any():
            # 0, but still a function of the weights: `backward` needs a graph, and other processes wait for gradients.
            output = self.network(pixel_values=self._normalised(images))
            return 0 * (output.class_queries_logits.sum() + output.masks_queries_logits.sum())
        masks, classes = [], []
        for label_map in labels[labelled]:
            present = [int(k) for k in label_map.unique() if k != IGNORE]
            masks.append(torch.stack([label_map == k for k in present]).float())
            classes.append(torch.tensor(present, device=label_map.device))
        pixels = self._normalised(images[labelled])
        result: Tensor = self.network(pixel_values=pixels, mask_labels=masks, class_labels=classes).loss
        return result.mean()

    def scores(self, images: Tensor) -> Tensor:
        """Class scores, float32 (B, classes, H, W), of uint8 images (B, 3, H, W). The argmax is a pixel's class."""
        return functional.interpolate(self._scores(images), images.shape[-2:], mode="bilinear", align_corners=False)

    def labels(self, images: Tensor) -> Tensor:
        """The class with the highest score, int64 (B, H, W), of uint8 images (B, 3, H, W).

        Only some classes at a time have scores in the size of the image: those of all classes require gigabytes for a
        photograph of a phone. UserError if a score is NaN or infinite.
        """
        scores = self._scores(images)
        if not scores.isfinite().all():
            raise UserError("the segmenter predicts NaN or infinity; train it again.")
        count = max(1, _MAX_SCORES // images[:, 0].numel())
        size, classes = images.shape[-2:], scores.shape[1]
        parts = (
            functional.interpolate(scores[:, k : k + count], size, mode="bilinear", align_corners=False).max(1)
            for k in range(0, classes, count)
        )
        best, labels = next(parts)
        for number, (highest, indices) in enumerate(parts, 1):
            labels = torch.where(highest > best, indices + number * count, labels)
            best = torch.maximum(best, highest)
        return labels

    def _scores(self, images: Tensor) -> Tensor:
        """`scores` in the resolution of the network's output."""
        output = self.network(pixel_values=self._normalised(self._at_training_scale(images)))
        if self.is_mask_classification:
            classes = output.class_queries_logits.float().softmax(-1)[..., :-1]
            masks = output.masks_queries_logits.float().sigmoid()
            return torch.einsum("bqc,bqhw->bchw", classes, masks)
        logits: Tensor = output.logits.float()
        return logits

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) in which the network reads an image."""
        return (height, width) if self.side is None else scaled_size((height, width), self.side / min(height, width))

    def _at_training_scale(self, images: Tensor) -> Tensor:
        size = self.input_size(*images.shape[-2:])
        if size == images.shape[-2:]:
            return images
        return functional.interpolate(images.float(), size, mode="bilinear", align_corners=False, antialias=True)

    def _normalised(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(v, device=images.device)[None, :, None, None] for v in (_MEAN, _STD))
        return (images.float() / 255 - mean) / std


@dataclass(frozen=True)
class _LoadingReport:
    """Names of weights that differ between a file and the network; transformers initialises those that are missing.

    `mismatched` weights have another shape; those in the subset `classifier` differ only in the number of classes.
    """

    missing: list[str]
    mismatched: list[str]
    classifier: list[str]
    unexpected: list[str]


def new_segmenter(architecture: str, names: Sequence[str]) -> Segmenter:
    """A segmenter with random weights (one of ARCHITECTURES), or with those of a folder or hub id and a new head.

    `names` are the classes, starting with background. UserError if `architecture` is none of these or its weights are
    incomplete.
    """
    id_maps = _id_maps(names)
    if architecture in ARCHITECTURES:
        return Segmenter(_randomly_initialised(architecture, id_maps), names)
    architecture = str(expanded(architecture))
    network, report = _pretrained(architecture, id_maps)
    _check_only_head_is_new(architecture, network, report)
    return Segmenter(network, names)


def _id_maps(names: Sequence[str]) -> dict[str, Any]:
    """Options of a configuration of transformers for a model of these classes."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def _check_only_head_is_new(source: str, network: Any, report: _LoadingReport) -> None:
    """UserError unless the file contains all weights, or all except the classifier (for other classes) or the head.

    A file without a head is a backbone that was pretrained on ImageNet. A file with a part of the head is damaged.
    """
    body = f"{network.base_model_prefix}."
    head = {name for name in network.state_dict() if not name.startswith(body)}
    missing = [name for name in report.missing if name.startswith(body)]
    missing += [] if head <= {*report.missing} else [name for name in report.missing if name in head]
    missing += [name for name in report.mismatched if name not in report.classifier]
    if missing:
        raise UserError(
            f"{source} is missing {len(missing)} weights of its network, starting with {missing[0]}; only the whole "
            f"head or its classifier may be absent. Copy the model again."
        )
    unexpected = [name for name in report.unexpected if name.startswith(body)]
    if unexpected:
        raise UserError(
            f"{source} contains {len(unexpected)} weights that do not match its config.json, starting with "
            f"{unexpected[0]}. Copy the model again."
        )


def _randomly_initialised(architecture: str, id_maps: dict[str, Any]) -> nn.Module:
    if architecture == "segformer":  # the sizes of B0
        network: nn.Module = AutoModelForSemanticSegmentation.from_config(SegformerConfig(**id_maps))
        return network
    backbone = SwinConfig(out_features=["stage1", "stage2", "stage3", "stage4"])  # Swin-T
    kind = MaskFormerConfig if architecture == "maskformer" else Mask2FormerConfig
    mask_classifier: nn.Module = AutoModelForUniversalSegmentation.from_config(
        kind(backbone_config=backbone, **id_maps)
    )
    return mask_classifier


def _pretrained(source: str, id_maps: dict[str, Any]) -> tuple[nn.Module, _LoadingReport]:
    """The network of a folder or hub id, and how its file differs from it.

    UserError if it is not a segmentation model or its weights are not finite.
    """
    try:
        config = AutoConfig.from_pretrained(source)
        classifies_masks = config.model_type in _MASK_CLASSIFIERS
        kind = AutoModelForUniversalSegmentation if classifies_masks else AutoModelForSemanticSegmentation
        network, loading = kind.from_pretrained(
            source, ignore_mismatched_sizes=True, output_loading_info=True, **id_maps
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, OSError) and not Path(source).exists():
            check_not_gated(source, error)
            raise UserError(
                f"{source} can be read neither from the hub nor from the local cache ({one_line(error).rstrip('.')}); "
                f"check the name and the network, or give {', '.join(ARCHITECTURES)} or a folder."
            ) from error
        raise UserError(
            f"{source} is not a segmentation model ({one_line(error)}); give {', '.join(ARCHITECTURES)}, a folder or a "
            f"hub id."
        ) from error
    broken = [name for name, value in network.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"the weight {broken[0]} of {source} contains NaN or infinity; train or copy the model again.")
    extra_classes = len(id_maps["id2label"]) - config.num_labels
    return network, _LoadingReport(
        missing=sorted(loading["missing_keys"]),
        mismatched=sorted(name for name, _, _ in loading["mismatched_keys"]),
        classifier=[
            name
            for name, theirs, ours in loading["mismatched_keys"]
            if theirs[1:] == ours[1:] and ours[0] - theirs[0] == extra_classes
        ],
        unexpected=sorted(loading["unexpected_keys"]),
    )


def save_segmenter(model: Segmenter, folder: Path, metadata: dict[str, Any]) -> None:
    """Write a transformers folder, and `segmenter.json` with the class names and `metadata`."""
    network: Any = model.network
    network.save_pretrained(folder)
    write_atomically(folder / STORED, dumps({"names": list(model.names), **metadata}, indent=1) + "\n")
    processor = _image_processor(network.config.model_type, stored_segmenter(folder)["side"])
    write_atomically(folder / "preprocessor_config.json", dumps(processor, indent=1) + "\n")


def _image_processor(model_type: str, side: int | None) -> dict[str, Any]:
    """The settings with which transformers prepares images, and reads predictions, as `Segmenter.scores` does.

    The image processor of SegFormer also serves the other models that classify pixels.
    """
    settings = {
        "image_processor_type": _MASK_CLASSIFIERS.get(model_type, "SegformerImageProcessor"),
        "do_resize": side is not None,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(_MEAN),
        "image_std": list(_STD),
        "do_reduce_labels": False,
    }
    if side is not None:
        limit = {"longest_edge": _LONGEST_EDGE} if model_type in _MASK_CLASSIFIERS else {}
        settings["size"] = {"shortest_edge": side, **limit}
    if model_type in _MASK_CLASSIFIERS:
        settings |= {"size_divisor": 0, "ignore_index": IGNORE}
    return settings


def load_segmenter(folder: Path) -> Segmenter:
    """Load a folder of `save_segmenter`. UserError if it does not contain a complete segmenter."""
    stored = stored_segmenter(folder)
    names, side = stored["names"], stored["side"]
    network, report = _pretrained(str(folder), _id_maps(names))
    differences = [
        f"{len(keys)} {kind} ({keys[0]})"
        for kind, keys in (
            ("missing", report.missing),
            ("mismatched", report.mismatched),
            ("unknown", report.unexpected),
        )
        if keys
    ]
    if differences:
        raise UserError(
            f"the weights of {folder} do not match its config: {', '.join(differences)}; copy or train the segmenter "
            f"again."
        )
    return Segmenter(network, names, side).eval()
