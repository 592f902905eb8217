"""Instance segmentation models of transformers, each read by the library's own post-processing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from factory.config.recipe import Recipe
from factory.dataset.records import Image, Instance
from factory.detector.labels import NO_CLASSES, translation
from factory.errors import UserError
from factory.hf_logging import quiet_model_libraries, torchvision_fault

_MIN_SCORE = 0.05

Segment = tuple[int, float, Tensor]
"""A label's number, a score in 0..1, and a mask bool (H, W) on the CPU."""


class TransformersDetector:
    """Instances as `post_process_instance_segmentation` of the model's own image processor has them.

    Labels, scores and masks are the library's; images are RGB, which the same processor brings to its size and norms.
    """

    def __init__(self, recipe: Recipe, source: str, device: str = "cpu") -> None:
        """UserError where `source`, a folder or hub id, is no such model or misses a class that prompts name."""
        self._threads, self._device = recipe.generator.threads, device
        self._model, self._processor = load_model(source, recipe.masks.detector_revision)
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
        if not images:
            return []
        answer = self._model(**self._given(images))
        # On the CPU, for the library's post-processing mixes devices.
        apart = {name: answer[name].float().cpu() for name in _OUTPUTS if answer.get(name) is not None}
        found = _READERS[self._model.config.model_type](self._processor, apart, images[0].shape[:2])
        return [self._named(segments) for segments in found]

    def _given(self, images: Sequence[Image]) -> dict[str, Any]:
        # OneFormer alone is asked in words for one of its tasks.
        task = {"task_inputs": ["instance"] * len(images)} if self._model.config.model_type == "oneformer" else {}
        given = self._processor(images=list(images), return_tensors="pt", input_data_format="channels_last", **task)
        return {name: value.to(self._device) for name, value in given.items() if name in _INPUTS}

    def _named(self, segments: Sequence[Segment]) -> list[Instance]:
        instances = []
        for number, score, mask in segments:
            label = self._labels.get(number, "N/A")
            if label not in NO_CLASSES and label in self._names and mask.any():
                instances.append(Instance(self._names[label], score, np.asarray(mask)))
        return sorted(instances, key=lambda row: -row.score)


_INPUTS = ("pixel_values", "pixel_mask", "task_inputs")
_OUTPUTS = ("class_queries_logits", "masks_queries_logits", "logits", "pred_masks")


def _overlapping(processor: Any, answer: dict[str, Tensor], size: tuple[int, int]) -> list[list[Segment]]:
    """Of the classes whose post-processing gives every instance a map of its own."""
    found = []
    for position in range(len(next(iter(answer.values())))):
        # Image by image: the library brings the masks of all queries to 384 x 384, half a gigabyte for 8 images of 100.
        alone = SimpleNamespace(**{name: value[position : position + 1] for name, value in answer.items()})
        (result,) = processor.post_process_instance_segmentation(
            alone, threshold=_MIN_SCORE, target_sizes=[size], return_binary_maps=True
        )
        pairs = zip(result["segments_info"], result["segmentation"], strict=False)
        found.append([(info["label_id"], info["score"], mask.bool()) for info, mask in pairs])
    return found


def _divided(processor: Any, answer: dict[str, Tensor], size: tuple[int, int] | None) -> list[list[Segment]]:
    """Of the classes whose post-processing divides an image among its instances, the surest first."""
    count = len(next(iter(answer.values())))
    sizes = None if size is None else [size] * count
    rows = processor.post_process_instance_segmentation(
        SimpleNamespace(**answer), threshold=_MIN_SCORE, target_sizes=sizes
    )
    return [
        [(info["label_id"], info["score"], row["segmentation"] == info["id"]) for info in row["segments_info"]]
        for row in rows
    ]


def _divided_by_oneformer(processor: Any, answer: dict[str, Tensor], size: tuple[int, int]) -> list[list[Segment]]:
    """The library brings the masks to the image's size with torchvision; this is what torchvision does."""
    masks = functional.interpolate(answer["masks_queries_logits"], size, mode="bilinear", antialias=True)
    return _divided(processor, answer | {"masks_queries_logits": masks}, None)


def _by_query(processor: Any, answer: dict[str, Tensor], size: tuple[int, int]) -> list[list[Segment]]:
    """EoMT's post-processing paints one instance over another in no order; asked query by query, all are whole."""
    found = []
    for classes, masks in zip(answer["class_queries_logits"], answer["masks_queries_logits"], strict=True):
        keep = classes.softmax(-1)[:, :-1].amax(-1) >= _MIN_SCORE
        alone = {"class_queries_logits": classes[keep, None], "masks_queries_logits": masks[keep, None]}
        found.append([row for rows in _divided(processor, alone, size) for row in rows] if keep.any() else [])
    return found


_READERS: dict[str, Callable[[Any, dict[str, Tensor], tuple[int, int]], list[list[Segment]]]] = {
    "mask2former": _overlapping,
    "maskformer": _overlapping,
    "rf_detr": _overlapping,
    "oneformer": _divided_by_oneformer,
    "detr": _divided,
    "eomt": _by_query,
    "eomt_dinov3": _by_query,
}
"""Types of models as their config.json names them."""


def read_labels(source: str, revision: str | None) -> list[str]:
    """The labels in the order of their numbers. UserError where `source` is no model that can be read here."""
    labels = _config(source, revision).id2label
    return [str(labels[number]) for number in sorted(labels)]


def load_model(source: str, revision: str | None) -> tuple[Any, Any]:
    """The model in float32 on the CPU, and its processor. UserError where they cannot be had, or are not complete."""
    from transformers import AutoModelForInstanceSegmentation, AutoModelForUniversalSegmentation

    config = _config(source, revision)
    kind = AutoModelForInstanceSegmentation if config.model_type == "rf_detr" else AutoModelForUniversalSegmentation
    try:
        model, report = kind.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True, **_options(source, revision)
        )
        processor = _processor(source, revision, config)
    except ImportError as error:
        fault = torchvision_fault() or " ".join(str(error).split())[:150]
        raise UserError(
            f"the image processor of {source} needs another library ({fault}); install the extra `torchvision`, see "
            f"docs/detectors.md."
        ) from error
    except Exception as error:  # truncated and foreign weights fail in many ways
        raise UserError(
            f"the detector {source} cannot be loaded ({_said(error)}); copy it again, or check the network."
        ) from error
    _check_complete(source, report)
    if getattr(processor, "do_split_image", False):
        raise UserError(
            f"{source} is a model of semantic segmentation (its image processor splits images into pieces); give one "
            f"of instance or panoptic segmentation."
        )
    return model, processor


def _config(source: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    quiet_model_libraries()
    try:
        config = AutoConfig.from_pretrained(source, **_options(source, revision))
    except Exception as error:
        if not Path(source).exists():
            raise UserError(
                f"the detector {source} cannot be had from the hub or its cache ({_said(error)}); check the id and the "
                f"network."
            ) from error
        raise UserError(
            f"{source} is no instance segmentation model of transformers ({_said(error)}); docs/detectors.md lists "
            f"what is."
        ) from error
    if config.model_type not in _READERS:
        raise UserError(
            f"{source} is no instance segmentation model of transformers (its type is {config.model_type!r}); give one "
            f"of {', '.join(_READERS)}."
        )
    return config


def _processor(source: str, revision: str | None, config: Any) -> Any:
    from transformers import AutoImageProcessor, AutoTokenizer

    # Of the two forms that most processors have, the one that needs no torchvision: an installed library must not
    # change what is detected.
    options = _options(source, revision) | {"backend": "pil"}
    if config.model_type != "oneformer":
        return AutoImageProcessor.from_pretrained(source, **options)
    from transformers import OneFormerProcessor

    # Its list of classes lies in another repository, and only training needs it.
    images = AutoImageProcessor.from_pretrained(source, class_info_file="", **options)
    words = AutoTokenizer.from_pretrained(source, **_options(source, revision))
    both = OneFormerProcessor(
        image_processor=images, tokenizer=words, max_seq_length=config.max_seq_len, task_seq_length=config.task_seq_len
    )
    both.post_process_instance_segmentation = images.post_process_instance_segmentation
    return both


def _options(source: str, revision: str | None) -> dict[str, Any]:
    """A folder is read as it is, a hub id at its commit; neither may bring code of its own."""
    where: dict[str, Any] = {"local_files_only": True} if Path(source).exists() else {"revision": revision}
    return where | {"trust_remote_code": False}


def _check_complete(source: str, report: dict[str, Any]) -> None:
    """UserError where a tensor of the model is not in the weights, or the other way round.

    What is missing would be filled with noise. Two kinds of tensors are not missed: those that only training uses, and
    counters.
    """
    unused = ("num_batches_tracked", "criterion.empty_weight")
    unexpected = [
        name for name in report["unexpected_keys"] if not name.endswith(unused) and "text_mapper." not in name
    ]
    faults = [("are missing", report["missing_keys"]), ("are unknown", unexpected)]
    told = "; ".join(f"{len(names)} tensors {what}, as {min(names)}" for what, names in faults if names)
    if told:
        raise UserError(f"the weights of {source} do not fit its config.json: {told}. Copy the whole model again.")


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
