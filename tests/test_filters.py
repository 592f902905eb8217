"""Filters: rejection reasons and recorded scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.config.prompts import Prompt
from factory.config.sections import FilterRecipe
from factory.dataset.manifest import MEASURES
from factory.dataset.records import Grounded, Instance
from factory.generation.filters import REASONS, Filters, difference_hash

PROMPT = Prompt("a dog and a cat", ("dog", "cat"), ("dog", "cat"))


def photo(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def block(left: int, right: int) -> np.ndarray:
    mask = np.zeros((64, 64), bool)
    mask[20:40, left:right] = True
    return mask


def both(dog: np.ndarray, cat: np.ndarray, score: float = 0.9) -> Grounded:
    return Grounded((Instance("dog", score, dog), Instance("cat", score, cat)))


SPLIT = block(30, 35) | block(50, 60)
GOOD = both(block(0, 20), block(30, 50))


@pytest.mark.parametrize(
    ("reason", "limits", "image", "grounded", "detected"),
    [
        ("blank_image", {}, np.full((64, 64, 3), 9, np.uint8), GOOD, None),
        ("mask_empty", {}, photo(), Grounded(GOOD.instances[:1]), None),
        ("mask_small", {"min_area": 0.05}, photo(), both(block(0, 20), block(30, 33)), None),
        ("mask_large", {"max_area": 0.05}, photo(), GOOD, None),
        ("mask_border", {"max_area": None}, photo(), both(block(0, 20), ~block(30, 50)), None),
        ("mask_fragmented", {"min_largest_region": 0.8}, photo(), both(block(0, 20), SPLIT), None),
        ("low_confidence", {"min_confidence": 0.5}, photo(), both(block(0, 20), block(30, 50), 0.4), None),
        ("overlap", {}, photo(), both(block(0, 20), block(2, 22)), None),
        ("detector_disagrees", {"min_detector_iou": 0.5}, photo(), GOOD, [Instance("dog", 0.9, block(0, 20))]),
    ],
)
def test_rejection_reasons(reason: str, limits: dict[str, Any], image: Any, grounded: Grounded, detected: Any) -> None:
    verdict = Filters(FilterRecipe(**limits)).judge(image, PROMPT, grounded, detected)
    assert verdict.reason == reason
    assert reason in REASONS


def test_good_sample_is_accepted_with_all_scores() -> None:
    verdict = Filters(FilterRecipe(min_detector_iou=0.5)).judge(photo(), PROMPT, GOOD, GOOD.instances)
    assert verdict.reason is None
    assert set(verdict.scores) == {
        "contrast", "area_smallest", "area_largest", "border", "confidence", "overlap", "detector_iou",
        "duplicate_distance", "image_hash",
    }  # fmt: skip
    assert verdict.scores["duplicate_distance"] == 64, "first image of the shard"


def test_shards_have_a_place_for_every_score_of_an_accepted_sample() -> None:
    """A shard with another score cannot be committed: its manifest has one column per measure."""
    limits = {"min_detector_iou": 0.5, "min_largest_region": 0.5, "min_confidence": 0.5, "max_border": 0.5}
    verdict = Filters(FilterRecipe.model_validate(limits)).judge(photo(), PROMPT, GOOD, GOOD.instances)
    assert verdict.reason is None
    schema = json.loads((Path(__file__).parents[1] / "schemas" / "annotation.json").read_text())
    assert verdict.scores.keys() <= schema["properties"]["filters"]["properties"].keys()
    assert verdict.scores.keys() <= {*MEASURES, "image_hash"}


def test_slightly_changed_image_is_a_near_duplicate() -> None:
    filters = Filters(FilterRecipe())
    smooth = np.kron(photo()[:8, :8], np.ones((8, 8, 1), np.uint8))
    assert filters.judge(smooth, PROMPT, GOOD).reason is None
    assert filters.judge(np.clip(smooth, 3, 250), PROMPT, GOOD).reason == "near_duplicate"
    assert filters.judge(photo(1), PROMPT, GOOD).reason is None


def cells(brighter: int) -> np.ndarray:
    """An image of 8 x 9 cells; `brighter` of them are brighter than their left neighbour, as many bits of its hash."""
    grey = np.zeros((8, 9), np.uint8)
    grey[:brighter, -1] = 200
    return np.repeat(np.kron(grey, np.ones((8, 8), np.uint8))[..., None], 3, 2)


def test_values_at_their_limits_are_accepted() -> None:
    """Which side a limit is on changes the samples of a dataset."""
    area = 20 * 20 / 64**2
    limits: dict[str, Any] = {"min_area": area, "max_area": area, "min_largest_region": 1.0, "min_confidence": 0.9}
    limits |= {"max_overlap": 0.0, "min_detector_iou": 0.5}
    halves = both(block(0, 10), block(30, 40)).instances
    assert Filters(FilterRecipe(**limits)).judge(photo(), PROMPT, GOOD, halves).reason is None


def test_an_image_at_the_duplicate_distance_is_a_duplicate() -> None:
    assert [difference_hash(cells(brighter)).bit_count() for brighter in range(4)] == [0, 1, 2, 3]
    filters = Filters(FilterRecipe(min_contrast=None, duplicate_distance=2))
    reasons = [filters.judge(cells(brighter), PROMPT, GOOD).reason for brighter in (0, 2, 3)]
    assert reasons == [None, "near_duplicate", None]


def test_null_disables_a_filter() -> None:
    disabled = {"min_area", "max_area", "min_confidence", "max_overlap", "duplicate_distance", "min_contrast"}
    filters = Filters(FilterRecipe.model_validate(dict.fromkeys(disabled)))
    for _ in range(2):
        assert filters.judge(np.zeros((64, 64, 3), np.uint8), PROMPT, both(block(0, 9), block(0, 9))).reason is None


def test_overlap_uses_raw_masks_and_other_filters_use_disjoint_masks() -> None:
    """A cat inside a dog's mask loses all pixels, a cat at its edge most of them: both must be rejected."""
    dog, inside, edge = block(0, 40), block(10, 14), block(20, 44)
    found = both(dog, inside)
    verdict = Filters(FilterRecipe()).judge(photo(), PROMPT, found.disjoint(), raw=found)
    assert verdict.reason == "mask_empty"
    found = both(dog, edge)
    verdict = Filters(FilterRecipe(min_area=0.1, max_overlap=None)).judge(photo(), PROMPT, found.disjoint(), raw=found)
    assert (verdict.reason, verdict.scores["area_smallest"]) == ("mask_small", round(20 * 4 / 64**2, 5))
    verdict = Filters(FilterRecipe(max_overlap=0.4)).judge(photo(), PROMPT, found.disjoint(), raw=found)
    assert (verdict.reason, verdict.scores["overlap"]) == ("overlap", round(20 / 44, 4))
