"""Instance segmentation models of transformers, with the library's own post-processing."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from factory.config.recipe import Recipe
from factory.dataset.records import Image, Instance
from factory.detector.hub_models import check_complete, options
from factory.detector.labels import NO_CLASSES, translation
from factory.detector.open_names import TYPES, WITH_BOXES
from factory.detector.preprocessing import read_settings
from factory.detector.rf_detr import RfDetrProcessor
from factory.errors import UserError, one_line
from factory.files.hub import check_not_gated
from factory.hf_logging import quiet_model_libraries
from factory.torchvision_guard import torchvision_fault

_MIN_SCORE = 0.05

Segment = tuple[int, float, Tensor]
"""(class id, score in 0..1, bool mask (H, W) on the CPU)."""


class TransformersDetector:
    """Detects instances with a transformers model and the post-processing of its own image processor.

    Labels, scores and masks are those of `post_process_instance_segmentation`; the same processor resizes and
    normalises the RGB images.
    """

    def __init__(self, recipe: Recipe, source: str, device: str) -> None:
        """Raises UserError if `source`, a folder or hub id, is not such a model or misses a class that prompts name."""
        self._device = device
        self._model, self._processor = load_model(source, recipe.masks.detector_revision)
        self._model = self._model.to(device).eval()
        self._labels = {int(k): str(name) for k, name in self._model.config.id2label.items()}
        known = [self._labels[k] for k in sorted(self._labels)]
        self._names = translation(recipe.vocabulary(), known, recipe.planned_names())

    @torch.inference_mode()
    def detect(self, images: Sequence[Image], classes: Sequence[Collection[str]] | None = None) -> list[list[Instance]]:
        """Instances in descending order of score, down to 0.05."""
        output = self._model(**self._inputs(images))
        # On the CPU, because the library's post-processing mixes devices.
        tensors = {name: output[name].float().cpu() for name in _OUTPUTS if output.get(name) is not None}
        found = _POST_PROCESSING[self._model.config.model_type](self._processor, tensors, images[0].shape[:2])
        return [self._instances(segments) for segments in found]

    def _inputs(self, images: Sequence[Image]) -> dict[str, Any]:
        # Only OneFormer takes its task as a text.
        task = {"task_inputs": ["instance"] * len(images)} if self._model.config.model_type == "oneformer" else {}
        inputs = self._processor(images=list(images), return_tensors="pt", input_data_format="channels_last", **task)
        return {name: value.to(self._device) for name, value in inputs.items() if name in _INPUTS}

    def _instances(self, segments: Sequence[Segment]) -> list[Instance]:
        instances = []
        for class_id, score, mask in segments:
            label = self._labels.get(class_id, "N/A")
            if label not in NO_CLASSES and label in self._names and mask.any():
                instances.append(Instance(self._names[label], score, np.asarray(mask)))
        return sorted(instances, key=lambda instance: -instance.score)


_INPUTS = ("pixel_values", "pixel_mask", "task_inputs")
_OUTPUTS = ("class_queries_logits", "masks_queries_logits", "logits", "pred_masks")


def _overlapping(processor: Any, output: dict[str, Tensor], size: tuple[int, int]) -> list[list[Segment]]:
    """For models whose post-processing returns one map per instance."""
    found = []
    for index in range(len(next(iter(output.values())))):
        # Image by image: the library resizes the masks of all queries to 384 x 384, half a gigabyte for 8 images with
        # 100 queries each.
        single = SimpleNamespace(**{name: value[index : index + 1] for name, value in output.items()})
        (result,) = processor.post_process_instance_segmentation(
            single, threshold=_MIN_SCORE, target_sizes=[size], return_binary_maps=True
        )
        pairs = zip(result["segments_info"], result["segmentation"], strict=False)
        found.append([(info["label_id"], info["score"], mask.bool()) for info, mask in pairs])
    return found


def _partitioned(processor: Any, output: dict[str, Tensor], size: tuple[int, int] | None) -> list[list[Segment]]:
    """For models whose post-processing assigns each pixel to one instance; in descending order of score."""
    count = len(next(iter(output.values())))
    sizes = None if size is None else [size] * count
    results = processor.post_process_instance_segmentation(
        SimpleNamespace(**output), threshold=_MIN_SCORE, target_sizes=sizes
    )
    return [
        [(info["label_id"], info["score"], result["segmentation"] == info["id"]) for info in result["segments_info"]]
        for result in results
    ]


def _oneformer(processor: Any, output: dict[str, Tensor], size: tuple[int, int]) -> list[list[Segment]]:
    """For OneFormer. The library resizes masks with torchvision; this is the same operation in torch alone."""
    masks = functional.interpolate(output["masks_queries_logits"], size, mode="bilinear", antialias=True)
    return _partitioned(processor, output | {"masks_queries_logits": masks}, None)


def _by_query(processor: Any, output: dict[str, Tensor], size: tuple[int, int]) -> list[list[Segment]]:
    """For EoMT, whose post-processing draws instances over each other; query by query, all masks stay complete."""
    found = []
    for classes, masks in zip(output["class_queries_logits"], output["masks_queries_logits"], strict=True):
        keep = classes.softmax(-1)[:, :-1].amax(-1) >= _MIN_SCORE
        queries = {"class_queries_logits": classes[keep, None], "masks_queries_logits": masks[keep, None]}
        found.append([s for segments in _partitioned(processor, queries, size) for s in segments] if keep.any() else [])
    return found


_POST_PROCESSING: dict[str, Callable[[Any, dict[str, Tensor], tuple[int, int]], list[list[Segment]]]] = {
    "mask2former": _overlapping,
    "maskformer": _overlapping,
    "rf_detr": _overlapping,
    "oneformer": _oneformer,
    "detr": _partitioned,
    "eomt": _by_query,
    "eomt_dinov3": _by_query,
}
"""Post-processing by the `model_type` in config.json."""


def read_labels(source: str, revision: str | None) -> list[str]:
    """The labels in the order of their ids. Raises UserError if `source` is not a supported model."""
    labels = _config(source, revision).id2label
    return [str(labels[class_id]) for class_id in sorted(labels)]


def load_model(source: str, revision: str | None) -> tuple[Any, Any]:
    """The model in float32 on the CPU, and its processor. Raises UserError if they are unavailable or incomplete."""
    from transformers import AutoModelForInstanceSegmentation, AutoModelForUniversalSegmentation

    config = _config(source, revision)
    kind = AutoModelForInstanceSegmentation if config.model_type == "rf_detr" else AutoModelForUniversalSegmentation
    try:
        model, report = kind.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True, **options(source, revision)
        )
        processor = _processor(source, revision, config)
    except UserError:
        raise
    except ImportError as error:
        fault = torchvision_fault() if "torchvision" in str(error) else None
        reason = fault or one_line(error, 150).partition(". ")[0]
        raise UserError(
            f"the detector {source} requires another library ({reason}); install it, see docs/detectors.md."
        ) from error
    except Exception as error:  # truncated or unrelated weights raise many types
        raise UserError(
            f"the detector {source} cannot be loaded ({one_line(error)}); copy it again, or check the network."
        ) from error
    check_complete(source, report, ("num_batches_tracked", "criterion.empty_weight", "text_mapper."))
    if getattr(processor, "do_split_image", False):
        raise UserError(
            f"{source} is a semantic segmentation model (its image processor splits images into tiles); give an "
            f"instance or panoptic segmentation model."
        )
    return model, processor


def _config(source: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    quiet_model_libraries()
    try:
        config = AutoConfig.from_pretrained(source, **options(source, revision))
    except Exception as error:
        if not Path(source).exists():
            check_not_gated(source, error)
            raise UserError(
                f"the detector {source} cannot be loaded from the hub or its cache ({one_line(error)}); check the id "
                f"and the network."
            ) from error
        raise UserError(
            f"{source} is not an instance segmentation model of transformers ({one_line(error)}); see "
            f"docs/detectors.md for supported models."
        ) from error
    kind = next((kind for kind, types in TYPES.items() if config.model_type in types), None)
    if kind is not None:
        raise UserError(
            f"{source} is an open-vocabulary model (its type is {config.model_type!r}); give it as {kind}:{source}"
            f"{'+SAM2' if kind in WITH_BOXES else ''}, see docs/detectors.md."
        )
    if config.model_type not in _POST_PROCESSING:
        raise UserError(
            f"{source} is not an instance segmentation model of transformers (its type is {config.model_type!r}); "
            f"supported types are {', '.join(_POST_PROCESSING)}."
        )
    return config


def _processor(source: str, revision: str | None, config: Any) -> Any:
    from transformers import AutoImageProcessor, AutoTokenizer

    if config.model_type == "rf_detr":
        return RfDetrProcessor(read_settings(source, revision), source)
    # Most processors have two implementations; this is the one without torchvision, because detections must not depend
    # on whether that library is installed.
    processor_options = options(source, revision) | {"backend": "pil"}
    if config.model_type != "oneformer":
        return AutoImageProcessor.from_pretrained(source, **processor_options)
    from transformers import OneFormerProcessor

    # Its list of classes is in another repository and is needed for training only.
    images = AutoImageProcessor.from_pretrained(source, class_info_file="", **processor_options)
    tokenizer = AutoTokenizer.from_pretrained(source, **options(source, revision))
    processor = OneFormerProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        max_seq_length=config.max_seq_len,
        task_seq_length=config.task_seq_len,
    )
    processor.post_process_instance_segmentation = images.post_process_instance_segmentation
    return processor
