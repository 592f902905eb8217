"""What passes between the steps: instances, candidates, verdicts, accepted samples and their annotation."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.config.plan import PlannedSample
from factory.config.recipe import Recipe
from factory.config.vocabulary import Vocabulary
from factory.dataset.masks import Mask, encode_rle, mask_to_xywh

ACCEPTED = "accepted"
"""The outcome of a sample's last attempt."""

Image = NDArray[np.uint8]
"""uint8 RGB (height, width, 3)."""


@dataclass(frozen=True)
class Instance:
    """One object in an image: a class of the vocabulary, a score of 0..1, and its pixels."""

    class_name: str
    score: float
    mask: Mask


@dataclass(frozen=True)
class Detection:
    """What a detector said of one object: kept where its masks were united or too unsure to count."""

    class_name: str
    score: float
    box_xywh: tuple[int, int, int, int]


@dataclass(frozen=True)
class Grounded:
    """The objects that a grounder or detector found; `ignore` marks pixels of which it is not sure."""

    instances: tuple[Instance, ...]
    ignore: Mask | None = None
    detections: tuple[Detection, ...] = ()

    def of_class(self, class_name: str) -> Mask | None:
        """The pixels of all instances of a class, or None where there is none."""
        masks = [instance.mask for instance in self.instances if instance.class_name == class_name]
        return np.logical_or.reduce(masks) if masks else None

    def disjoint(self) -> "Grounded":
        """Each pixel to the instance with the highest score; instances that keep no pixel are left out."""
        taken: Mask | None = None
        kept: dict[int, Instance] = {}
        for place in sorted(range(len(self.instances)), key=lambda k: (-self.instances[k].score, k)):
            instance = self.instances[place]
            mask = instance.mask if taken is None else instance.mask & ~taken
            taken = mask.copy() if taken is None else taken | mask
            if mask.any():
                kept[place] = replace(instance, mask=mask)
        return replace(self, instances=tuple(kept[place] for place in sorted(kept)))


@dataclass(frozen=True)
class Verdict:
    """Accepted, or rejected with a reason; `scores` are what the filters measured, up to the one that rejected."""

    reason: str | None
    scores: Mapping[str, float | str]


@dataclass(frozen=True)
class Rejection:
    """An attempt that a filter did not let through."""

    attempt: int
    seed: int
    reason: str


@dataclass(frozen=True)
class Sample:
    """An accepted sample; the masks of `grounded` are disjoint.

    An oracle's has the `latent` of its features, float16 (C, h, w), and the timestep.
    """

    planned: PlannedSample
    attempt: int
    seed: int
    image: Image
    grounded: Grounded
    scores: Mapping[str, float | str]
    rejections: tuple[Rejection, ...] = field(default=())
    latent: NDArray[np.float16] | None = None
    timestep: int = 0


def annotate(sample: Sample, vocabulary: Vocabulary, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The sample's json member: COCO-style annotations and where everything came from; see schemas/annotation.json.

    Every field has one type whatever the data, and no list is empty, for readers that infer types from a few samples.
    The `provenance` of a recipe of format 1 gives that format's record: schemas/annotation-1.json.
    """
    height, width = sample.image.shape[:2]
    annotations = []
    for place, instance in enumerate(sample.grounded.instances):
        annotations.append(
            {
                "id": sample.planned.index * 1000 + place + 1,
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
    row = {
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
        **(_rejected(sample) if provenance.get("format") == 1 else _attempts(sample)),
        "filters": dict(sample.scores),
        "provenance": dict(provenance),
    }
    if sample.latent is None:
        return row
    detected = sample.grounded.detections or provenance.get("format") == 1
    return row | {"timestep": sample.timestep} | (_detections(sample) if detected else {})


def _attempts(sample: Sample) -> dict[str, Any]:
    """Every attempt with its outcome: the reasons of those that were rejected, and at last "accepted"."""
    rows = [(row.attempt, row.seed, row.reason) for row in sample.rejections]
    rows.append((sample.attempt, sample.seed, ACCEPTED))
    return {"attempts": [{"attempt": attempt, "seed": seed, "outcome": outcome} for attempt, seed, outcome in rows]}


def _rejected(sample: Sample) -> dict[str, Any]:
    """The rejected attempts alone, as datasets of format 1 have them."""
    return {"rejected": [{"attempt": row.attempt, "seed": row.seed, "reason": row.reason} for row in sample.rejections]}


def _detections(sample: Sample) -> dict[str, Any]:
    """Every detection of the prompt's classes; real images have none, for their masks are their labels."""
    detections = [
        {"category_name": row.class_name, "score": round(float(row.score), 4), "bbox": list(row.box_xywh)}
        for row in sample.grounded.detections
    ]
    return {"detections": detections}


def provenance(recipe: Recipe) -> dict[str, Any]:
    """What a sample says about the models and settings that made it: the same for all samples of a recipe."""
    made, masks = recipe.generator, recipe.masks
    uses_detector = masks.source == "detector" or recipe.filters.min_detector_iou is not None
    trained = {} if masks.grounder_revision is None else {"grounder_revision": masks.grounder_revision}
    return {
        "format": recipe.format,
        "recipe": recipe.fingerprint(),
        "generator": made.model_dump(mode="json", exclude={"threads", "compile", "channels_last", "width", "height"}),
        "masks": {
            "source": masks.source,
            **trained,
            "capture": masks.capture,
            "timesteps": list(masks.timesteps),
            "levels": None if masks.levels is None else list(masks.levels),
            "threshold": masks.threshold,
            "detector": masks.detector if uses_detector else None,
            "detector_revision": masks.detector_revision if uses_detector else None,
        },
    }
