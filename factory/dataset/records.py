"""Data passed between pipeline steps: instances, filter verdicts, accepted samples and their annotations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.config.plan import PlannedSample
from factory.config.recipe import Recipe
from factory.config.vocabulary import Vocabulary
from factory.dataset.masks import Mask, encode_rle, label_map, mask_to_xywh

ACCEPTED = "accepted"
"""The outcome of the accepted attempt of a sample, which is its last one."""

Image = NDArray[np.uint8]
"""uint8 RGB (height, width, 3)."""


@dataclass(frozen=True)
class Instance:
    """An object in an image: its class, its score in [0, 1] and its mask."""

    class_name: str
    score: float
    mask: Mask


@dataclass(frozen=True)
class Detection:
    """A raw detection, recorded because instances merge detections and drop uncertain ones."""

    class_name: str
    score: float
    box_xywh: tuple[int, int, int, int]


@dataclass(frozen=True)
class Grounded:
    """The objects found by a grounder or detector; `ignore` marks uncertain pixels."""

    instances: tuple[Instance, ...]
    ignore: Mask | None = None
    detections: tuple[Detection, ...] = ()

    def of_class(self, class_name: str) -> Mask | None:
        """The union of the masks of a class; None if it has no instance."""
        masks = [instance.mask for instance in self.instances if instance.class_name == class_name]
        return np.logical_or.reduce(masks) if masks else None

    def label_map(self, classes: Sequence[str], shape: Sequence[int]) -> NDArray[np.uint8]:
        """Labels, uint8 (height, width), from disjoint masks: k is the k-th of `classes`, 255 ignored, 0 background."""
        masks = [instance.mask for instance in self.instances]
        numbers = [classes.index(instance.class_name) + 1 for instance in self.instances]
        return label_map((shape[0], shape[1]), masks, numbers, self.ignore)

    def disjoint(self) -> "Grounded":
        """Assign each pixel to the instance with the highest score; instances left without pixels are dropped."""
        taken: Mask | None = None
        kept: dict[int, Instance] = {}
        for index in sorted(range(len(self.instances)), key=lambda k: (-self.instances[k].score, k)):
            instance = self.instances[index]
            mask = instance.mask if taken is None else instance.mask & ~taken
            taken = mask.copy() if taken is None else taken | mask
            if mask.any():
                kept[index] = replace(instance, mask=mask)
        return replace(self, instances=tuple(kept[index] for index in sorted(kept)))


@dataclass(frozen=True)
class Verdict:
    """The decision of the filters. `reason` is None if accepted; `scores` end with the rejecting filter."""

    reason: str | None
    scores: Mapping[str, float | str]


@dataclass(frozen=True)
class Rejection:
    """An attempt rejected by a filter."""

    attempt: int
    seed: int
    reason: str


@dataclass(frozen=True)
class Sample:
    """An attempt at a sample, accepted or rejected; the masks of `grounded` are disjoint.

    `rejections` are the attempts before this one. Samples of an oracle dataset also have the `latent` that reproduces
    their features, float16 (C, h, w), and the noise level that it already has.
    """

    planned: PlannedSample
    attempt: int
    seed: int
    image: Image
    grounded: Grounded
    scores: Mapping[str, float | str]
    rejections: tuple[Rejection, ...] = ()
    latent: NDArray[np.float16] | None = None
    noise_level: float = 0.0


def annotate(sample: Sample, vocabulary: Vocabulary, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The sample's json member: COCO-style annotations and provenance; see schemas/annotation.json.

    Every field always has the same type and no list is empty, for readers that infer types from a few samples.
    """
    height, width = sample.image.shape[:2]
    annotations = []
    for number, instance in enumerate(sample.grounded.instances, 1):
        annotations.append(
            {
                "id": annotation_id(sample.planned.index, number),
                "image_id": sample.planned.index,
                "category_id": vocabulary.resolve(instance.class_name).id,
                "category_name": instance.class_name,
                "segmentation": encode_rle(instance.mask),
                "bbox": mask_to_xywh(instance.mask),
                "area": int(np.count_nonzero(instance.mask)),
                "iscrowd": 0,
                "score": round(float(instance.score), 4),
            }
        )
    record = {
        "key": sample.planned.key,
        "image": {
            "id": sample.planned.index,
            "file_name": f"{sample.planned.key}.jpg",
            "width": width,
            "height": height,
        },
        "annotations": annotations,
        "prompt": sample.planned.prompt.text,
        "classes": list(sample.planned.prompt.classes),
        "seed": sample.seed,
        "attempt": sample.attempt,
        **_attempts(sample),
        "filters": dict(sample.scores),
        "provenance": dict(provenance),
    }
    if sample.latent is None:
        return record
    return record | {"noise_level": sample.noise_level} | (_detections(sample) if sample.grounded.detections else {})


def annotation_id(image: int, number: int) -> int:
    """The id of an object, unique in a dataset; `number` counts the objects of its image from 1."""
    return image * 1000 + number


def _attempts(sample: Sample) -> dict[str, Any]:
    """All attempts with their outcomes: rejection reasons, then "accepted"."""
    attempts = [(rejection.attempt, rejection.seed, rejection.reason) for rejection in sample.rejections]
    attempts.append((sample.attempt, sample.seed, ACCEPTED))
    return {"attempts": [{"attempt": attempt, "seed": seed, "outcome": outcome} for attempt, seed, outcome in attempts]}


def _detections(sample: Sample) -> dict[str, Any]:
    """All detections of the prompt's classes. Real images have none, because their masks come from labels."""
    detections = [
        {
            "category_name": detection.class_name,
            "score": round(float(detection.score), 4),
            "bbox": list(detection.box_xywh),
        }
        for detection in sample.grounded.detections
    ]
    return {"detections": detections}


def provenance(recipe: Recipe) -> dict[str, Any]:
    """The models and settings recorded in each sample; identical for all samples of a recipe."""
    generator, masks = recipe.generator, recipe.masks
    uses_detector = recipe.uses_detector()
    trained = {} if masks.grounder_revision is None else {"grounder_revision": masks.grounder_revision}
    return {
        "format": recipe.format,
        "recipe": recipe.fingerprint(),
        "generator": generator.model_dump(
            mode="json",
            # The others are in the recipe; fields that were added later would change the bytes of older datasets.
            exclude={"threads", "compile", "channels_last", "width", "height", "guidance_schedule"},
        ),
        "masks": {
            "source": masks.source,
            **trained,
            "noise_level": masks.noise_level,
            "noise_seed": masks.noise_seed,
            "blocks": None if masks.blocks is None else list(masks.blocks),
            "levels": None if masks.levels is None else list(masks.levels),
            "threshold": masks.threshold,
            "detector": masks.detector if uses_detector else None,
            "detector_revision": masks.detector_revision if uses_detector else None,
        },
    }
