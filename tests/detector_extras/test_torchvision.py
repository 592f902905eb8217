"""The detectors of torchvision against that library, with seeded weights.

`make test-extras` creates an environment that has it; without it these tests fail.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factory.config.vocabulary import coco
from factory.detector.load import check_classes, open_detector, pin_detector, with_pinned_detector
from factory.errors import UserError
from tests.support.detector_extras import image, make_detections_likely, recipe, rows

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("default")]


def seeded(builder: str, **options: Any) -> dict[str, torch.Tensor]:
    """Random weights of torchvision's form, with statistics of normalisation that matter."""
    from torchvision.models import detection

    torch.manual_seed(0)
    network = getattr(detection, builder)(weights=None, weights_backbone=None, **options)
    state = network.state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            value.uniform_(0.05, 1)
        elif name.endswith("running_mean"):
            value.normal_(std=0.1)
        make_detections_likely(name, value)
    return dict(state)


def without_counters(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Like the COCO weights of the first Mask R-CNN."""
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def by_torchvision(network: Any, picture: np.ndarray, labels: list[str]) -> list[tuple[str, float, bytes]]:
    with torch.inference_mode():
        (row,) = network.eval()([torch.from_numpy(picture).permute(2, 0, 1).float().div(255)])
    found = zip(row["labels"], row["scores"], row["masks"], strict=True)
    named = [(labels[int(k)], float(score), (mask[0] > 0.5).numpy().tobytes()) for k, score, mask in found]
    return sorted(row for row in named if row[0] != "N/A")


@pytest.mark.parametrize(
    ("builder", "form"),
    [
        ("maskrcnn_resnet50_fpn", "file"),
        ("maskrcnn_resnet50_fpn", "default weights"),
        ("maskrcnn_resnet50_fpn_v2", "file"),
    ],
)
def test_mask_rcnn_matches_torchvision_with_its_coco_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builder: str, form: str
) -> None:
    from torchvision.models import detection, get_model_weights

    weights = get_model_weights(builder).DEFAULT
    state = seeded(builder)
    if builder == "maskrcnn_resnet50_fpn":
        state = without_counters(state)
    named = f"torchvision:{builder}"
    # Instead of a download: the file in torch.hub's cache.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub/checkpoints" / weights.url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    torch.save(state, cached)
    theirs = getattr(detection, builder)(weights=weights)
    if form == "file":
        torch.save(state, tmp_path / "weights.pth")
        cached.unlink()
        named += f"@{tmp_path / 'weights.pth'}"
    detector = open_detector(recipe(named), "cpu")
    (found,) = detector.detect([image()])
    assert rows(found) == by_torchvision(theirs, image(), list(weights.meta["categories"]))
    assert len(found) > 3
    if builder == "maskrcnn_resnet50_fpn_v2":
        mixed = detector.detect([image(), image(64, 64)])
        assert [rows(found) for found in mixed] == [
            rows(detector.detect([single])[0]) for single in (image(), image(64, 64))
        ]


def test_weights_that_count_batches_get_ordinary_normalisation(tmp_path: Path) -> None:
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    state = seeded("maskrcnn_resnet50_fpn")
    torch.save({"model": state}, tmp_path / "weights.pth")
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    theirs.load_state_dict(state)
    detector = open_detector(recipe(f"torchvision:maskrcnn_resnet50_fpn@{tmp_path / 'weights.pth'}"), "cpu")
    labels = ["N/A"] * 91
    for entry in coco().classes:
        labels[entry.id] = entry.name
    assert rows(detector.detect([image()])[0]) == by_torchvision(theirs, image(), labels)


def test_torchvision_weights_with_a_custom_list_of_classes(tmp_path: Path) -> None:
    from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

    state = seeded("maskrcnn_resnet50_fpn_v2", num_classes=4)
    torch.save(state, tmp_path / "weights.pth")
    named = f"torchvision:maskrcnn_resnet50_fpn_v2@{tmp_path / 'weights.pth'}"
    with pytest.raises(UserError, match=r"has 4 classes including background, .*weights.classes.txt, one per line"):
        open_detector(recipe(named, ["dog"]), "cpu")
    (tmp_path / "weights.classes.txt").write_text("unicorn\nN/A\ngriffin\n")
    theirs = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=4)
    theirs.load_state_dict(state)
    (found,) = open_detector(recipe(named, ["unicorn", "griffin"]), "cpu").detect([image()])
    assert rows(found) == by_torchvision(theirs, image(), ["N/A", "unicorn", "N/A", "griffin"])
    assert found
    with pytest.raises(UserError, match="does not know 1 of the classes: dog"):
        check_classes(recipe(named, ["dog"]))
    (tmp_path / "weights.classes.txt").write_text("unicorn\n")
    with pytest.raises(UserError, match=r"has 3 classes besides background, but .* names 1"):
        open_detector(recipe(named, ["unicorn"]), "cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maskrcnn_resnet500_fpn", "torchvision has no detector"),
        ("fasterrcnn_resnet50_fpn", "detects no masks"),
        ("resnet50", "detects no masks"),
    ],
)
def test_a_builder_without_masks_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_pinned_detector(recipe(f"torchvision:{name}"))


def test_torchvision_classes_are_checked_without_weights() -> None:
    with pytest.raises(UserError, match="does not know 1 of the classes: unicorn"):
        with_pinned_detector(recipe("torchvision:maskrcnn_resnet50_fpn_v2", ["unicorn"]))


def test_a_pin_of_torchvision_weights_survives_a_new_version() -> None:
    named = "torchvision:maskrcnn_resnet50_fpn_v2"
    old = pin_detector(named).rpartition(" ")[0] + " 0.21.0"
    assert with_pinned_detector(recipe(named, detector_revision=old)).detector_revision == old
    with pytest.raises(UserError, match="pins the detector"):
        with_pinned_detector(
            recipe(named, detector_revision="MaskRCNN_ResNet50_FPN_Weights.COCO_V1 of torchvision 0.28.0")
        )


def test_unavailable_default_weights_raise_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, and with a truncated download."""
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights as Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    address = "http://127.0.0.1:9/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    monkeypatch.setattr(type(Weights.DEFAULT), "url", property(lambda self: address), raising=False)
    named = recipe("torchvision:maskrcnn_resnet50_fpn")
    with pytest.raises(UserError, match=r"cannot be downloaded .*; check the network"):
        open_detector(named, "cpu")
    cached = tmp_path / "hub/checkpoints" / address.rpartition("/")[2]
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(UserError, match=r"delete a damaged copy in .*checkpoints"):
        open_detector(named, "cpu")
