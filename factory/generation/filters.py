"""Quality filters for samples, in the order in which they are applied."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Literal, get_args

import numpy as np
from PIL import Image as Pictures
from scipy import ndimage

from factory.config.prompts import Prompt
from factory.config.sections import FilterRecipe
from factory.dataset.masks import Mask, intersection_over_union
from factory.dataset.records import Grounded, Image, Instance, Verdict

Reason = Literal[
    "blank_image",
    "mask_empty",
    "mask_small",
    "mask_large",
    "mask_border",
    "mask_fragmented",
    "low_confidence",
    "overlap",
    "detector_disagrees",
    "near_duplicate",
]
REASONS: tuple[str, ...] = get_args(Reason)

_BITS = 64
"""Bits of an image hash: the largest possible distance, which is also recorded if there is no other image."""

Scores = dict[str, float | str]


class Filters:
    """The filters of one shard; they remember accepted images to detect near-duplicates."""

    def __init__(self, recipe: FilterRecipe) -> None:
        self._recipe = recipe
        self._hashes: list[int] = []

    def judge(
        self,
        image: Image,
        prompt: Prompt,
        grounded: Grounded,
        detected: Sequence[Instance] | None = None,
        raw: Grounded | None = None,
    ) -> Verdict:
        """Accept the sample, or reject it with the first reason that applies.

        `grounded` has the disjoint masks that will be written; `raw` has the masks before overlaps were removed (by
        default `grounded`). `detected` are the confident instances of the detector, required if the recipe sets
        `min_detector_iou`.
        """
        scores: Scores = {}
        checks: list[Callable[[], Reason | None]] = [
            lambda: self._blank(image, scores),
            lambda: self._area(prompt, grounded, scores),
            lambda: self._border(prompt, grounded, scores),
            lambda: self._fragments(prompt, grounded, scores),
            lambda: self._confidence(grounded, scores),
            lambda: self._overlap(prompt, raw or grounded, scores),
            lambda: self._agreement(prompt, grounded, detected, scores),
            lambda: self._duplicate(image, scores),
        ]
        for check in checks:
            reason = check()
            if reason is not None:
                return Verdict(reason, scores)
        self._hashes.append(int(str(scores["image_hash"]), 16))
        return Verdict(None, scores)

    def _blank(self, image: Image, scores: Scores) -> Reason | None:
        contrast = float(np.asarray(Pictures.fromarray(image).convert("L"), np.float64).std())
        scores["contrast"] = round(contrast, 2)
        return "blank_image" if _under(contrast, self._recipe.min_contrast) else None

    def _area(self, prompt: Prompt, grounded: Grounded, scores: Scores) -> Reason | None:
        masks = [grounded.of_class(name) for name in prompt.classes]
        areas = [0.0 if mask is None else float(mask.mean()) for mask in masks]
        scores["area_smallest"] = round(min(areas, default=0.0), 5)
        scores["area_largest"] = round(max(areas, default=0.0), 5)
        if min(areas, default=0.0) == 0:
            return "mask_empty"
        if _under(min(areas), self._recipe.min_area):
            return "mask_small"
        return "mask_large" if _over(max(areas), self._recipe.max_area) else None

    def _border(self, prompt: Prompt, grounded: Grounded, scores: Scores) -> Reason | None:
        share = max((border_share(mask) for mask in _masks(prompt, grounded)), default=0.0)
        scores["border"] = round(share, 4)
        return "mask_border" if _over(share, self._recipe.max_border) else None

    def _fragments(self, prompt: Prompt, grounded: Grounded, scores: Scores) -> Reason | None:
        if self._recipe.min_largest_region is None:
            return None
        share = min((largest_region_share(mask) for mask in _masks(prompt, grounded)), default=0.0)
        if share >= self._recipe.min_largest_region:
            return None  # the score is not recorded: the manifests of format 3 have no column for it
        scores["largest_region"] = round(share, 4)
        return "mask_fragmented"

    def _confidence(self, grounded: Grounded, scores: Scores) -> Reason | None:
        least = min(instance.score for instance in grounded.instances)
        scores["confidence"] = round(float(least), 4)
        return "low_confidence" if _under(least, self._recipe.min_confidence) else None

    def _overlap(self, prompt: Prompt, grounded: Grounded, scores: Scores) -> Reason | None:
        pairs = combinations(_masks(prompt, grounded), 2)
        overlap = max((intersection_over_union(first, second) for first, second in pairs), default=0.0)
        scores["overlap"] = round(overlap, 4)
        return "overlap" if _over(overlap, self._recipe.max_overlap) else None

    def _agreement(
        self, prompt: Prompt, grounded: Grounded, detected: Sequence[Instance] | None, scores: Scores
    ) -> Reason | None:
        if self._recipe.min_detector_iou is None:
            return None
        assert detected is not None, "min_detector_iou requires detections"
        reference, least = Grounded(tuple(detected)), 1.0
        for name in prompt.classes:
            mask, other = grounded.of_class(name), reference.of_class(name)
            least = min(least, 0.0 if mask is None or other is None else intersection_over_union(mask, other))
        scores["detector_iou"] = round(least, 4)
        return "detector_disagrees" if least < self._recipe.min_detector_iou else None

    def _duplicate(self, image: Image, scores: Scores) -> Reason | None:
        code = difference_hash(image)
        scores["image_hash"] = f"{code:016x}"
        if self._recipe.duplicate_distance is None:
            return None
        nearest = min(((code ^ other).bit_count() for other in self._hashes), default=_BITS)
        scores["duplicate_distance"] = nearest
        return "near_duplicate" if nearest <= self._recipe.duplicate_distance else None


def _masks(prompt: Prompt, grounded: Grounded) -> list[Mask]:
    """The mask of each class of the prompt that has one."""
    return [mask for name in prompt.classes if (mask := grounded.of_class(name)) is not None]


def border_share(mask: Mask) -> float:
    """The share of the outermost pixels of the image that a mask covers; near 1 if the mask covers the background."""
    rim = np.concatenate((mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]))
    return float(rim.mean())


def largest_region_share(mask: Mask) -> float:
    """The share of a mask, bool (H, W), that its largest connected region covers; about half if a class is drawn twice.

    Pixels are connected to their eight neighbours.
    """
    regions, _ = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(regions[mask])
    return float(areas.max() / areas.sum())


def difference_hash(image: Image) -> int:
    """A 64-bit dHash: for each of 8 x 8 cells, whether it is darker than its right neighbour.

    The hashes of similar images differ in few bits.
    """
    small = Pictures.fromarray(image).convert("L").resize((9, 8), Pictures.Resampling.BOX)
    grey = np.asarray(small, np.int16)
    bits = (grey[:, :-1] < grey[:, 1:]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes())


def _under(value: float, limit: float | None) -> bool:
    return limit is not None and value < limit


def _over(value: float, limit: float | None) -> bool:
    return limit is not None and value > limit
