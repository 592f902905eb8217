"""The detector interface: real classes with random weights, labels in the vocabulary, channel order."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ResNetConfig

from factory.config.recipe import Recipe, make_recipe
from factory.config.splits import seen_classes
from factory.config.vocabulary import coco, from_names, voc
from factory.dataset.records import Instance
from factory.detector import detectron2 as with_detectron2
from factory.detector import torchvision as with_torchvision
from factory.detector import ultralytics as with_ultralytics
from factory.detector.embedded import EmbeddedDetector
from factory.detector.fitting import FittingDetector
from factory.detector.labels import in_order, translation, unseen_by
from factory.detector.load import check_classes, open_detector, pin_detector
from factory.detector.transformers import TransformersDetector
from factory.errors import UserError
from tests.support.tiny_detectors import TINY_DETECTORS

LABELS = ["N/A", *coco().names]


def _recipe(detector: str | Path, classes: str = "voc", **changes: Any) -> Recipe:
    return make_recipe(
        {"n": 1, "classes": classes, "masks": {"source": "detector", "detector": str(detector)}} | changes
    )


@pytest.fixture(scope="module", params=["mask2former", "maskformer"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that detects something of some class everywhere, with high scores."""
    return TINY_DETECTORS[request.param](tmp_path_factory.mktemp("detector") / request.param, coco().names)


def _images(count: int = 3) -> list[Any]:
    random = np.random.default_rng(0)
    return [random.integers(0, 255, (64, 96, 3), np.uint8) for _ in range(count)]


def test_instances_have_the_images_size_and_the_vocabularys_names(folder: Path) -> None:
    detector: Any = open_detector(_recipe(folder, "coco"), "cpu")
    assert isinstance(detector._detector, TransformersDetector)
    found = detector.detect(_images())
    assert len(found) == 3
    assert any(found)
    for row in (row for rows in found for row in rows):
        assert row.class_name in coco().names
        assert 0 < row.score <= 1
        assert row.mask.shape == (64, 96)
        assert row.mask.dtype == bool
        assert row.mask.any()
    assert all([row.score for row in rows] == sorted((row.score for row in rows), reverse=True) for rows in found)


def test_an_image_has_the_same_instances_alone_and_in_a_batch(folder: Path) -> None:
    detector, images = open_detector(_recipe(folder, "coco"), "cpu"), _images()
    together = detector.detect(images)
    for k, image in enumerate(images):
        (alone,) = detector.detect([image])
        assert [row.class_name for row in alone] == [row.class_name for row in together[k]]
        for instance, other in zip(alone, together[k], strict=True):
            assert instance.score == pytest.approx(other.score, abs=1e-4)
            assert (instance.mask != other.mask).mean() < 0.01
    mixed = detector.detect([images[0], images[1][:32]])
    assert [rows[0].mask.shape for rows in mixed if rows] == [(64, 96), (32, 96)][: sum(map(bool, mixed))]


def test_a_detector_is_pinned_by_its_content(folder: Path) -> None:
    assert len(pin_detector(str(folder))) == 40
    assert pin_detector(str(folder)) != pin_detector("stickers")


def test_the_embedded_detectors_folder_opens_as_the_embedded_detector(tmp_path: Path) -> None:
    from factory.files.embedded_models import detector_folder

    opened: Any = [open_detector(_recipe(name), "cpu") for name in ("stickers", str(detector_folder()))]
    assert all(isinstance(detector._detector, EmbeddedDetector) for detector in opened)


def test_the_embedded_detector_takes_images_of_mixed_sizes() -> None:
    detector, images = open_detector(_recipe("stickers"), "cpu"), _images()
    mixed = detector.detect([images[0], images[1][:32]])
    alone = [detector.detect([image])[0] for image in (images[0], images[1][:32])]
    assert [[(row.class_name, row.score) for row in rows] for rows in mixed] == [
        [(row.class_name, row.score) for row in rows] for rows in alone
    ]


def test_an_embedded_detector_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from factory.files.embedded_models import detector_folder

    (tmp_path / "config.json").write_bytes((detector_folder() / "config.json").read_bytes())
    state = load_file(detector_folder() / "model.safetensors")
    state.pop("decode_head.classifier.weight")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensor is missing or unknown, such as decode_head.classifier.weight"):
        open_detector(_recipe(tmp_path), "cpu")
    (tmp_path / "model.safetensors").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"cannot be loaded .*; copy it again"):
        open_detector(_recipe(tmp_path), "cpu")


def test_labels_match_by_alias_and_gaps_are_skipped() -> None:
    names = translation(voc(), ["N/A", "tv", "Dining_Table", "airplane", *voc().names])
    assert names["tv"] == "tvmonitor"
    assert names["Dining_Table"] == "diningtable"
    assert "N/A" not in names
    assert unseen_by(voc(), ["dog", "tv"], ["dog", "tvmonitor", "cat"]) == ["cat"]


def test_labels_match_in_another_unicode_form() -> None:
    """Accents as separate characters, as macOS writes them, or another case of a letter."""
    names = translation(from_names(["caf\u00e9", "stra\u00dfe"]), ["cafe\u0301", "STRASSE"])
    assert names == {"cafe\u0301": "caf\u00e9", "STRASSE": "stra\u00dfe"}


def test_labels_that_list_synonyms_match_each_of_them() -> None:
    """ADE20K's labels are such lists."""
    labels = ["wall", "refrigerator, icebox", "television receiver, television, tv", "tv, toy", "person"]
    names = translation(coco(), labels, ["refrigerator", "tv", "person"])
    assert names == {"refrigerator, icebox": "refrigerator", labels[2]: "tv", "person": "person"}
    assert translation(voc(), ["tv, toy", "tvmonitor"], ["tvmonitor"]) == {"tvmonitor": "tvmonitor"}


def test_classes_that_share_a_label_are_rejected() -> None:
    """The detector found only the last of them, and samples of the others were rejected in every attempt."""
    classes, labels = from_names(["refrigerator", "icebox", "lamp"]), ["refrigerator, icebox", "lamp"]
    with pytest.raises(UserError, match="one label, 'refrigerator, icebox', for the classes refrigerator and icebox"):
        translation(classes, labels)
    found = translation(classes, labels, ["refrigerator", "lamp"])
    assert found == {"refrigerator, icebox": "refrigerator", "lamp": "lamp"}


def test_a_class_that_the_detector_does_not_know_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match="does not know 1 of the classes: unicorn; it knows 81 classes such as person"):
        check_classes(_recipe(folder, classes=["unicorn", "dog"]))
    with pytest.raises(UserError, match="does not know 2 of the classes: unicorn, troll"):
        open_detector(_recipe(folder, classes=["unicorn", "troll"]), "cpu")


def test_a_class_that_no_prompt_names_may_be_missing() -> None:
    known = [name for name in coco().names if name != "dog"]
    with pytest.raises(UserError, match="1 of the classes: dog"):
        translation(voc(), known)
    assert len(translation(voc(), known, seen_classes(voc(), "1"))) == 19


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "there is no folder ./nowhere; give `stickers`"),
        (".", "is not a detector: it has no config.json; give"),
        ("sma3:facebook/sam3", "there is no kind of detectors 'sma3', got sma3:facebook/sam3; the kinds are sam3"),
        (
            "torchvision:maskrcnn_resnet50_fpn_v2@nowhere.pth",
            "there is no weight file nowhere.pth; give the path of an",
        ),
    ],
)
def test_a_missing_detector_raises_a_clear_error(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pin_detector(name)


def test_a_folder_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], id2label=dict(enumerate(LABELS))).save_pretrained(
        tmp_path
    )
    with pytest.raises(UserError, match="is not an instance segmentation model of transformers"):
        open_detector(_recipe(tmp_path, "coco"), "cpu")


def test_ultralytics_that_is_not_installed_raises_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ultralytics", None)
    (tmp_path / "w.pt").write_bytes(b"weights")
    with pytest.raises(
        UserError, match=r"ultralytics cannot be used \(.*\); install it with a torchvision that matches"
    ):
        open_detector(_recipe(f"ultralytics:yolo11n-seg@{tmp_path / 'w.pt'}"), "cpu")
    with pytest.raises(UserError, match="has no weight file"):
        open_detector(_recipe("ultralytics:yolo11n-seg"), "cpu")


@pytest.mark.parametrize(("library", "name"), [("torchvision", "maskrcnn_resnet50_fpn_v2"), ("detectron2", "x.yaml")])
def test_a_library_that_is_not_installed_raises_a_clear_error(
    library: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"{library} is not installed"):
        pin_detector(f"{library}:{name}")


def test_torchvision_labels_index_a_list_with_gaps() -> None:
    """Its COCO list has 91 entries like the official ids: 18 is dog, 12 is unused."""
    labels = ["__background__"] + ["N/A"] * 90
    for entry in coco().classes:
        labels[entry.id] = entry.name
    masks = torch.zeros(3, 1, 4, 6)
    masks[0, 0, 1:3, 2:5] = 0.7
    row = {"labels": torch.tensor([18, 12, 72]), "scores": torch.tensor([0.9, 0.8, 0.7]), "masks": masks}
    found = with_torchvision.as_instances(row, labels, translation(voc(), labels))
    assert [(row.class_name, round(row.score, 2)) for row in found] == [("dog", 0.9), ("tvmonitor", 0.7)]
    assert found[0].mask.sum() == 6


def test_detectron2_classes_start_at_0_without_gaps() -> None:
    labels = list(coco().names)
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, :2] = True
    row = SimpleNamespace(pred_classes=torch.tensor([16, 62]), scores=torch.tensor([0.9, 0.4]), pred_masks=masks)
    found = with_detectron2.as_instances(row, labels, translation(voc(), labels))
    assert [instance.class_name for instance in found] == ["dog", "tvmonitor"]
    assert found[0].mask.sum() == 12


def test_channels_are_in_the_models_order() -> None:
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    assert (in_order(red, "BGR")[..., 2] == 255).all()
    assert (in_order(red, "BGR")[..., 0] == 0).all()
    assert in_order(red, "RGB") is red


def test_a_batch_that_does_not_fit_into_memory_is_detected_in_parts() -> None:
    class Limited:
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def detect(self, images: Any, classes: Any = None) -> list[list[Instance]]:
            self.calls.append((len(images), classes))
            if len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return [[Instance(f"{image[0, 0, 0]}", 1.0, np.ones((1, 1), bool))] for image in images]

    images = [np.full((1, 1, 3), k, np.uint8) for k in range(3)]
    limited = Limited()
    detector = FittingDetector(limited, "limited", 1)
    assert [found[0].class_name for found in detector.detect(images)] == ["0", "1", "2"]
    assert [found[0].class_name for found in detector.detect(images, [["a"], ["b"], ["c"]])] == ["0", "1", "2"]
    assert limited.calls == [(3, None), (2, None), (1, None), (2, [["a"], ["b"]]), (1, [["c"]])]


@pytest.mark.parametrize("tf32", [False, True])
def test_a_detector_on_a_gpu_of_its_own_computes_like_one_in_a_worker(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tf32: bool
) -> None:
    """The flags are those of the process; the pool's processes load no text-to-image model."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr("factory.detector.load._opened", lambda recipe, device: None)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    dtype = "tf32" if tf32 else "float32"
    recipe = make_recipe({"n": 1, "classes": "voc", "generator": {"model": str(tiny_model), "dtype": dtype}})
    try:
        open_detector(recipe, "cuda")
        assert torch.are_deterministic_algorithms_enabled()
        assert (cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32) == (True, tf32, tf32)
        assert not torch.utils.deterministic.fill_uninitialized_memory, "models are loaded without it"
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
        cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before


def test_mask_r_cnn_uses_the_kernels_of_torchvision_in_deterministic_mode() -> None:
    """The implementation that torchvision chooses in this mode on GPUs needs more memory than they have."""
    modes: list[bool] = []

    def model(inputs: Any) -> list[Any]:
        modes.append(torch.are_deterministic_algorithms_enabled())
        return []

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for kind in (with_torchvision.TorchvisionDetector, with_detectron2.Detectron2Detector):
            detector = object.__new__(kind)
            vars(detector).update(_model=model, _threads=1)
            detector.detect([])
        assert modes == [False, False]
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_ultralytics_receives_a_device_that_leaves_the_workers_gpu_visible(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a string such as "cuda", the library sets CUDA_VISIBLE_DEVICES to 0, whichever GPU Ray chose."""
    given: dict[str, Any] = {}

    def predictor(overrides: dict[str, Any]) -> Any:
        given.update(overrides)
        return SimpleNamespace(setup_model=lambda model, verbose: None)

    monkeypatch.setattr(with_ultralytics, "labels", lambda name: list(voc().names))
    monkeypatch.setattr(with_ultralytics, "load_model", lambda name: None)
    monkeypatch.setattr(with_ultralytics, "_library", lambda: {"SegmentationPredictor": predictor})
    recipe = make_recipe({"n": 1, "classes": "voc", "generator": {"model": str(tiny_model)}})
    with_ultralytics.UltralyticsDetector(recipe, "yolo11n-seg@file.pt", "cuda")
    assert given["device"] == torch.device("cuda")
