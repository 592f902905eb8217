"""Masks from attention and from a detector."""

import numpy as np

from factory.config.prompts import Prompt
from factory.config.sections import MaskRecipe
from factory.dataset.records import Image, Instance
from factory.detector.interface import DetectorGrounder
from factory.generator.interface import Attention, Generated
from factory.grounder.attention import AttentionGrounder, otsu

PAIR = Prompt("a photograph of a dog and a cat", ("dog", "cat"), ("dog", "cat"))
IMAGE = np.zeros((64, 64, 3), np.uint8)


def attention_to(*regions: tuple[slice, slice]) -> Attention:
    """Attention of 16 x 16 with one region per class."""
    maps = np.full((len(regions) + 3, 16, 16), 0.01, np.float32)
    for group, region in enumerate(regions):
        maps[group][region] = 0.2
    return Attention({(16, 16): maps}, {(16, 16): 1})


def test_each_class_gets_the_region_with_its_attention() -> None:
    attention = attention_to((slice(2, 7), slice(2, 7)), (slice(9, 14), slice(9, 14)))
    (found,) = AttentionGrounder(MaskRecipe()).ground([Generated(IMAGE, attention)], [PAIR])
    dog, cat = found.instances
    assert (dog.class_name, cat.class_name) == ("dog", "cat")
    assert dog.mask[16, 16]
    assert cat.mask[44, 44]
    assert not (dog.mask & cat.mask).any()
    assert 300 < dog.mask.sum() < 500
    assert dog.score > 0.7


def test_a_class_without_attention_gets_no_mask() -> None:
    attention = attention_to((slice(2, 7), slice(2, 7)), (slice(0, 0), slice(0, 0)))
    (found,) = AttentionGrounder(MaskRecipe()).ground([Generated(IMAGE, attention)], [PAIR])
    assert [instance.class_name for instance in found.instances] == ["dog"]


def test_otsus_threshold_splits_two_groups() -> None:
    heat = np.where(np.arange(400).reshape(20, 20) < 100, 0.8, 0.1).astype(np.float32)
    assert 0.1 < otsu(heat) < 0.8
    assert otsu(np.full((4, 4), 0.5, np.float32)) == 1.0


class FixedDetector:
    def __init__(self, *found: Instance) -> None:
        self.found = found

    def detect(self, images: list[Image], classes: object = None) -> list[list[Instance]]:
        return [list(self.found) for _ in images]


def block(start: int, stop: int) -> np.ndarray:
    mask = np.zeros((64, 64), bool)
    mask[start:stop, start:stop] = True
    return mask


def test_detections_become_masks_and_uncertain_ones_are_ignored() -> None:
    detector = FixedDetector(
        Instance("dog", 0.9, block(0, 10)),
        Instance("dog", 0.8, block(20, 30)),
        Instance("cat", 0.4, block(40, 50)),
        Instance("cat", 0.1, block(55, 60)),
        Instance("bird", 0.9, block(50, 60)),
    )
    (found,) = DetectorGrounder(detector, MaskRecipe()).ground([Generated(IMAGE)], [PAIR])
    assert [(i.class_name, i.score) for i in found.instances] == [("dog", 0.9), ("dog", 0.8)]
    assert found.ignore is not None
    assert (found.ignore == block(40, 50)).all()
