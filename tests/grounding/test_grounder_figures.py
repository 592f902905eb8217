"""The figures of evaluated grounders and the losses of their training, compared with values computed by hand."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from factory.config.prompts import Prompt
from factory.dataset.records import Grounded, Instance
from factory.evaluation.grounder_results import GROUPS, GrounderResult, averaged
from factory.evaluation.grounders_on_real import _result
from factory.evaluation.split_evaluation import EvaluationBatch, measure
from factory.generator.interface import Generated
from factory.grounder.iou import IoUMeter
from factory.grounder.loss import binary_loss, competing_loss

PROMPT = Prompt("a dog and a cat", ("dog", "cat"), ("dog", "cat"))


def test_groups_of_classes_and_areas_have_their_own_figures() -> None:
    meter = IoUMeter()
    meter.add(["dog", "sofa"], np.array([[1, 1, 1, 2, 1]]), np.array([[1, 0, 0, 2, 255]]))
    meter.add(["cat"], np.array([[0, 0, 0, 0]]), np.array([[1, 1, 1, 1]]))
    assert (meter.miou, meter.image_miou) == (pytest.approx(4 / 9), pytest.approx(4 / 9))
    assert (meter.miou_of({"dog", "sofa"}), meter.miou_of({"cat"})) == (pytest.approx(2 / 3), 0)
    assert math.isnan(meter.miou_of({"bus"}))
    assert meter.area == 4 / 6
    config: Any = SimpleNamespace(classes_seen=("dog", "couch"), split="1")
    result = _result("guided", config, "photos", meter)
    assert (result.seen, result.unseen, result.images) == (pytest.approx(2 / 3), 0, 2)
    assert math.isnan(IoUMeter().miou)
    assert math.isnan(IoUMeter().area)


def test_labels_of_masks_are_numbered_as_in_the_prompt() -> None:
    cat, unsure = np.array([[True, False, False]]), np.array([[False, True, False]])
    found = Grounded((Instance("cat", 0.5, cat),), unsure)
    assert found.label_map(PROMPT.classes, (1, 3)).tolist() == [[2, 255, 0]]


def test_averages_are_those_of_the_splits_of_a_method() -> None:
    results = [
        GrounderResult(method, split, group, miou, 0.0, 9, 9)
        for method, split, miou in (("attention", "1", 0.2), ("attention", "2", 0.4), ("guided", "2", 0.9))
        for group in GROUPS
    ]
    assert dict(averaged(results)) == {
        "attention": dict.fromkeys(GROUPS, pytest.approx(0.3)), "guided": dict.fromkeys(GROUPS, 0.9),
    }  # fmt: skip


class _Evaluation:
    """Batches of three images, in one of which the detector finds no cat. A grounder finds the cat everywhere."""

    def __init__(self) -> None:
        left, right = np.array([[True, False]]), np.array([[False, True]])
        self.truth = Grounded((Instance("dog", 1, left), Instance("cat", 1, right)))
        found = Grounded((Instance("dog", 0.9, left), Instance("cat", 0.8, left | right)))
        self.generators = [(None, {"guided": SimpleNamespace(ground=lambda generated, prompts: [found] * 3)})]
        self.max_images = 0

    def batches(self, group: str, max_images: int) -> Iterator[EvaluationBatch]:
        self.max_images = max_images
        images = [Generated(np.zeros((1, 2, 3), np.uint8))] * 3
        while True:
            yield EvaluationBatch([PROMPT] * 3, [images], [self.truth, Grounded(self.truth.instances[:1]), self.truth])


def test_images_with_all_objects_are_measured_up_to_the_requested_number() -> None:
    evaluation: Any = _Evaluation()
    # The dog has the higher score where both are found, as in the masks that `generate` writes.
    assert measure(evaluation, "two seen", 5) == {"guided": (1.0, 1.0, 5, 7)}
    assert evaluation.max_images > 5, "the detector does not find every object"


def test_losses_are_means_over_counted_pixels_and_found_objects() -> None:
    """A wrong weight would still train, only to worse masks."""
    logits = torch.zeros(2, 2, 2, 2)
    labels = torch.tensor([[[0, 1], [1, 255]], [[0, 0], [0, 0]]], dtype=torch.uint8)
    found = torch.tensor([[True, False], [False, False]])
    # The first image has 3 counted pixels of two candidates each, the second one 4 of background alone.
    cross_entropy, dice = 3 * math.log(2) / 7, 1 - (2 * 1 + 1) / (3.5 + 1)
    assert competing_loss(logits, labels, found).item() == pytest.approx(cross_entropy + dice)
    assert competing_loss(logits, labels, found, dice=0).item() == pytest.approx(cross_entropy)
    assert binary_loss(logits, labels, found).item() == pytest.approx(math.log(2))
