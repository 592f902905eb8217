"""The detectors of torchvision and detectron2 themselves; `make test-extras` fails where they are not installed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from factory.detector.load import open_detector
from factory.recipe import make_recipe
from factory.vocabulary import coco

pytestmark = pytest.mark.extras


def images() -> list[np.ndarray]:
    return [np.random.default_rng(k).integers(0, 255, (96, 128, 3), np.uint8) for k in range(2)]


def test_torchvisions_mask_rcnn_with_weights_of_a_file(tmp_path: Path) -> None:
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    torch.manual_seed(0)
    network = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    named = f"torchvision:maskrcnn_resnet50_fpn@{tmp_path / 'weights.pth'}"
    detector = open_detector(make_recipe({"n": 1, "masks": {"source": "detector", "detector": named}}), "cpu")
    for row in (row for rows in detector.detect(images()) for row in rows):
        assert row.class_name in coco().names
        assert row.mask.shape == (96, 128)


def test_detectron2s_mask_rcnn_of_the_zoo() -> None:
    """Fetches the weights of the model zoo."""
    named = "detectron2:COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
    detector = open_detector(make_recipe({"n": 1, "masks": {"source": "detector", "detector": named}}), "cpu")
    assert len(detector.detect(images())) == 2
