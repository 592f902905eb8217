"""YOLO of ultralytics against that library, with seeded weights.

`make test-extras` creates an environment that has it; without it these tests fail.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from factory.config.vocabulary import coco
from factory.detector.load import check_classes, open_detector, pin_detector, with_pinned_detector
from factory.errors import UserError
from tests.support.detector_extras import image, recipe, rows
from tests.support.harmful_pickle import HarmfulPickle

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def yolo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the library writes it: a pickle of the whole network in half precision."""
    from ultralytics.nn.tasks import SegmentationModel

    torch.manual_seed(0)
    model = SegmentationModel("yolo11n-seg.yaml", nc=80, verbose=False)
    model.names = dict(enumerate(coco().names))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # statistics of the next batch, which make random weights react to the image
            module.reset_running_stats()
    with torch.no_grad():
        pictures = [np.kron(image(seed=seed), np.ones((5, 5, 1), np.uint8)) for seed in range(2)]
        model.train()(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255)
        for branch in model.model[-1].cv3:
            branch[-1].weight.mul_(2)
            branch[-1].bias.fill_(-5)
    model.eval()
    path = tmp_path_factory.mktemp("yolo") / "yolo11n-seg.pt"
    checkpoint = {
        "epoch": -1,
        "model": copy.deepcopy(model).half(),
        "ema": None,
        "train_args": {"imgsz": 640, "task": "segment"},
    }
    torch.save(checkpoint | {"date": "2026-11-28", "version": "8.4"}, path)
    return path


@pytest.mark.parametrize("size", [(96, 128), (128, 96)])
def test_yolo_instances_match_ultralytics(yolo: Path, size: tuple[int, int]) -> None:
    from ultralytics import YOLO

    picture = image(*size)
    (found,) = open_detector(recipe(f"ultralytics:yolo11n-seg@{yolo}"), "cpu").detect([picture])
    (result,) = YOLO(yolo).predict(
        np.ascontiguousarray(picture[:, :, ::-1]), conf=0.05, retina_masks=True, verbose=False, device="cpu"
    )
    pairs = zip(result.boxes.cls, result.boxes.conf, result.masks.data, strict=True)
    expected = [(result.names[int(k)], float(score), np.asarray(mask, bool).tobytes()) for k, score, mask in pairs]
    assert rows(found) == sorted(expected)
    assert len({row.class_name for row in found}) > 1
    assert found[0].mask.shape == size


def test_yolo_images_are_detected_as_if_alone(yolo: Path) -> None:
    detector = open_detector(recipe(f"ultralytics:yolo11n-seg@{yolo}"), "cpu")
    pictures = [image(), image(128, 96, 1), image(seed=2)]
    together = detector.detect(pictures)
    assert [rows(found) for found in together] == [rows(detector.detect([picture])[0]) for picture in pictures]


def test_yolo_tensors_with_a_list_of_classes_are_pinned_and_checked(yolo: Path, tmp_path: Path) -> None:
    """Without the pickle of a network."""
    from ultralytics.nn.tasks import SegmentationModel

    state = SegmentationModel("yolo11n-seg.yaml", nc=2, verbose=False).state_dict()
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match="does not name its classes; write them to"):
        with_pinned_detector(recipe(f"ultralytics:yolo11n-seg@{tmp_path / 'w.pth'}", ["dog", "axolotl"]))
    (tmp_path / "w.classes.txt").write_text("axolotl\ndog\n")
    pinned = with_pinned_detector(recipe(f"ultralytics:yolo11n-seg@{tmp_path / 'w.pth'}", ["dog", "axolotl"]))
    assert pinned.detector_revision == pin_detector(pinned.detector)
    with pytest.raises(UserError, match="does not know 1 of the classes: cat"):
        check_classes(recipe(f"ultralytics:yolo11n-seg@{tmp_path / 'w.pth'}", ["cat"]))
    (tmp_path / "w.classes.txt").write_text("axolotl\ndog\ncat\n")
    with pytest.raises(UserError, match="does not fit the model"):
        with_pinned_detector(recipe(f"ultralytics:yolo11n-seg@{tmp_path / 'w.pth'}", ["dog", "axolotl"]))


def test_yolo_checkpoints_run_no_code(tmp_path: Path) -> None:
    torch.save({"model": HarmfulPickle(tmp_path / "it-ran")}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"refers to .*open, which could run code"):
        open_detector(recipe(f"ultralytics:yolo11n-seg@{tmp_path / 'w.pt'}"), "cpu")
    assert not (tmp_path / "it-ran").exists()
    (tmp_path / "w.pt").write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match=r"the weight file .* cannot be used"):
        open_detector(recipe(f"ultralytics:yolo11n-seg@{tmp_path / 'w.pt'}"), "cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yolo11n-seg", "has no weight file; download the checkpoint"),
        ("yolo11n@{yolo}", "is not the name of a segmentation model"),
        ("../evil-seg@{yolo}", "is not the name of a segmentation model"),
        ("yolo99n-seg@{yolo}", "ultralytics cannot build yolo99n-seg"),
    ],
)
def test_wrong_yolo_names_are_rejected(yolo: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_pinned_detector(recipe(f"ultralytics:{name.format(yolo=yolo)}"))
