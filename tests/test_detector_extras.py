"""The detectors of torchvision, detectron2 and ultralytics against those libraries themselves, with seeded weights.

`make test-extras` makes an environment that has them; without them these tests fail.
"""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factory.config.recipe import Recipe, make_recipe
from factory.config.vocabulary import coco
from factory.dataset.records import Instance
from factory.detector.load import check_classes, open_detector, pin_detector, with_pinned_detector
from factory.detector.preprocessing import Preprocessor, read_settings
from factory.detector.sam2 import Sam2Masks
from factory.errors import UserError
from tests.support.library_detections import library_rows
from tests.support.tiny_detectors import tiny_oneformer, tiny_rf_detr
from tests.support.tiny_open_vocabulary import tiny_sam2, tiny_sam3

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("default")]  # detectron2's dependencies warn

LABELS = ["N/A", *coco().names]
CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"


def image(height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    """Blocks of colour: plain noise looks the same everywhere to random weights."""
    blocks = np.random.default_rng(seed).integers(0, 255, (height // 16, width // 16, 3), np.uint8)
    return np.kron(blocks, np.ones((16, 16, 1), np.uint8))


def recipe(detector: str | Path, classes: Any = "coco", **masks: Any) -> Recipe:
    named = {"source": "detector", "detector": str(detector)} | masks
    return make_recipe({"n": 1, "classes": classes, "masks": named})


def rows(found: list[Instance]) -> list[tuple[str, float, bytes]]:
    return sorted((row.class_name, row.score, row.mask.tobytes()) for row in found)


# --- transformers' classes that need torchvision


def test_rf_detr_instances_match_the_library(tmp_path: Path) -> None:
    folder = tiny_rf_detr(tmp_path / "it", coco().names)
    (found,) = open_detector(recipe(folder), "cpu").detect([image()])
    expected, _ = library_rows(folder, image(), target_sizes=[(96, 128)], return_binary_maps=True)
    named = [(LABELS[label], score, mask.tobytes()) for label, score, mask in expected if label and mask.any()]
    assert rows(found) == sorted(named)
    assert len(found) > 3


def test_oneformer_instances_match_the_library_in_every_size(tmp_path: Path) -> None:
    folder = tiny_oneformer(tmp_path / "it", coco().names)
    (found,) = open_detector(recipe(folder), "cpu").detect([image()])
    expected, _ = library_rows(folder, image(), target_sizes=[(96, 128)])
    assert rows(found) == sorted((LABELS[label], score, mask.tobytes()) for label, score, mask in expected if label)
    assert found


def test_sam3_preprocessing_instances_and_scores_match_the_library(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, Sam3Model, Sam3Processor
    from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

    classes = ["dog", "traffic light"]
    folder = tiny_sam3(tmp_path / "it", classes)
    (found,) = open_detector(recipe(f"sam3:{folder}", classes), "cpu").detect([image()])
    images = Sam3ImageProcessor.from_pretrained(folder)
    processor = Sam3Processor(images, AutoTokenizer.from_pretrained(folder))
    given = Preprocessor(read_settings(str(folder), {}), "it")(image())
    torch.testing.assert_close(given, images(image(), return_tensors="pt").pixel_values, rtol=0, atol=1e-6)
    expected = []
    for name in classes:
        inputs = processor(images=image(), text=name, return_tensors="pt")
        with torch.inference_mode():
            output = Sam3Model.from_pretrained(folder).eval()(
                **{key: inputs[key] for key in ("pixel_values", "input_ids", "attention_mask")}
            )
        (row,) = processor.post_process_instance_segmentation(output, threshold=0.3, target_sizes=[(96, 128)])
        pairs = zip(row["scores"].tolist(), row["masks"].bool().numpy(), strict=True)
        expected += [Instance(name, score, mask) for score, mask in pairs if mask.any()]
    assert [(k, round(s, 5), m) for k, s, m in rows(found)] == [(k, round(s, 5), m) for k, s, m in rows(expected)]
    assert len(found) > 5


def test_sam2_preprocessing_and_masks_match_the_library(tmp_path: Path) -> None:
    from transformers import Sam2Model, Sam2Processor
    from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor

    folder = tiny_sam2(tmp_path / "it")
    boxes = [[4.0, 8.0, 60.0, 70.0], [30.0, 20.0, 120.0, 90.0]]
    with torch.inference_mode():
        found = Sam2Masks(str(folder), None, "cpu").masks(image(), torch.tensor(boxes))
        processor = Sam2Processor(Sam2ImageProcessor.from_pretrained(folder))
        inputs = processor(images=image(), input_boxes=[boxes], return_tensors="pt")
        given = Preprocessor(read_settings(str(folder), {}), "it")(image())
        torch.testing.assert_close(given, inputs.pixel_values, rtol=0, atol=1e-5)
        output = Sam2Model.from_pretrained(folder).eval()(
            pixel_values=inputs.pixel_values, input_boxes=inputs.input_boxes, multimask_output=False
        )
    (expected,) = processor.post_process_masks(output.pred_masks, inputs.original_sizes)
    assert np.array_equal(found, expected[:, 0].numpy())
    assert 0 < found.mean() < 1


# --- torchvision


def _calm(name: str, value: torch.Tensor) -> None:
    """Adjust random weights so that they detect something: bounded features, boxes within the image, likely classes."""
    if name.endswith(("bn3.weight", "conv3.norm.weight")):
        value.mul_(0.2)
    elif name.endswith(("bbox_pred.weight", "anchor_deltas.weight")):
        value.zero_()
    elif name.endswith("cls_score.bias"):
        value[1:9] = 3  # otherwise all classes are equally likely, and none reaches 0.05


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
        _calm(name, value)
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


# --- detectron2


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A seeded Mask R-CNN of the zoo's config: its config, its weights and the folder of the files."""
    from detectron2 import model_zoo
    from detectron2.modeling import build_model

    config = model_zoo.get_config(CONFIG)
    config.MODEL.DEVICE, config.MODEL.WEIGHTS = "cpu", ""
    config.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.05
    torch.manual_seed(0)
    state = {name: value.clone() for name, value in build_model(config).state_dict().items()}
    for name, value in state.items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1)
        elif name.endswith("mask_head.predictor.weight"):
            value.mul_(300)
        _calm(name, value)
    return config, state, tmp_path_factory.mktemp("zoo")


def saved(zoo: Any, form: str) -> Path:
    _, state, folder = zoo
    path: Path = folder / f"weights-{form}.{'pth' if form == 'torch' else 'pkl'}"
    if form == "torch":
        torch.save({"model": state, "iteration": 1}, path)
        return path
    arrays = {name: value.numpy() for name, value in state.items()}
    if form == "matching":  # names without the prefix, as backbones are published
        arrays = {name.removeprefix("backbone.bottom_up."): value for name, value in arrays.items()}
    extra = {"matching_heuristics": True} if form == "matching" else {}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "test", **extra}))
    return path


@pytest.mark.parametrize("form", ["torch", "zoo", "matching"])
def test_mask_rcnn_matches_detectron2s_default_predictor(zoo: Any, form: str) -> None:
    from detectron2.data import MetadataCatalog
    from detectron2.engine import DefaultPredictor

    path = saved(zoo, form)
    config = copy.deepcopy(zoo[0])
    config.MODEL.WEIGHTS = str(path)
    predictor = DefaultPredictor(config)
    labels = MetadataCatalog.get(config.DATASETS.TRAIN[0]).thing_classes
    detector = open_detector(recipe(f"detectron2:{CONFIG}@{path}"), "cpu")
    pictures = [image(seed=k) for k in range(2)] if form == "torch" else [image()]
    for picture in pictures:
        theirs = predictor(picture[:, :, ::-1])["instances"]  # it takes BGR
        expected = [
            (labels[int(number)], float(score), mask.numpy().tobytes())
            for number, score, mask in zip(theirs.pred_classes, theirs.scores, theirs.pred_masks, strict=True)
        ]
        (found,) = detector.detect([picture])
        assert rows(found) == sorted(expected)
        assert len(found) > 3
    if form == "torch":
        mixed = detector.detect([image(), image(64, 64)])
        assert [rows(found) for found in mixed] == [
            rows(detector.detect([single])[0]) for single in (image(), image(64, 64))
        ]


def test_a_file_without_matching_tensors_is_refused(zoo: Any) -> None:
    """detectron2 itself warns and continues with random weights."""
    _, state, folder = zoo
    torch.save({"model": {f"other.{name}": value for name, value in state.items()}}, folder / "other.pth")
    (folder / "other.pkl").write_bytes(
        pickle.dumps({"model": {"a": np.zeros(3, np.float32)}, "__author__": "x", "matching_heuristics": True})
    )
    for name in ("other.pth", "other.pkl"):
        with pytest.raises(UserError, match=r"does not fit the model, which has \d+ tensors: \d+ are missing"):
            open_detector(recipe(f"detectron2:{CONFIG}@{folder / name}"), "cpu")


def test_detectron2_weights_with_a_custom_list_of_classes(zoo: Any) -> None:
    _, state, folder = zoo
    head = "roi_heads.box_predictor.cls_score.weight"
    path = folder / "two.pth"
    torch.save(state, path)
    (folder / "two.classes.txt").write_text("unicorn\ngriffin\n")
    with pytest.raises(UserError, match=r"have another shape, such as roi_heads"):
        open_detector(recipe(f"detectron2:{CONFIG}@{path}", ["unicorn"]), "cpu")
    cut = dict(state)
    for name in state:
        if "box_predictor.cls_score" in name:
            cut[name] = state[name][:3]
        elif "box_predictor.bbox_pred" in name:
            cut[name] = state[name][:8]
        elif "mask_head.predictor" in name:
            cut[name] = state[name][:2]
    assert len(cut[head]) == 3
    torch.save(cut, path)
    detector = open_detector(recipe(f"detectron2:{CONFIG}@{path}", ["unicorn", "griffin"]), "cpu")
    assert {row.class_name for row in detector.detect([image()])[0]} == {"griffin"}  # _calm makes the second likely


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("COCO-InstanceSegmentation/mask_rcnn_R_500.yaml", "has no config"),
        ("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml", "detects boxes but no masks"),
        ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml", "detects boxes but no masks"),
    ],
)
def test_a_config_without_masks_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_pinned_detector(recipe(f"detectron2:{name}"))


def test_detectron2s_classes_are_checked_without_its_weights() -> None:
    with pytest.raises(UserError, match="does not know 1 of the classes: unicorn"):
        with_pinned_detector(recipe(f"detectron2:{CONFIG}", ["unicorn"]))


def test_unavailable_or_damaged_zoo_weights_raise_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detectron2.model_zoo.model_zoo import _ModelZooUrls

    monkeypatch.setattr(_ModelZooUrls, "S3_PREFIX", "http://127.0.0.1:9/")
    with pytest.raises(UserError, match=r"cannot be downloaded .*; check the network, or download http"):
        open_detector(recipe(f"detectron2:{CONFIG}"), "cpu")
    path = tmp_path / CONFIG.removesuffix(".yaml") / _ModelZooUrls.CONFIG_PATH_TO_URL_SUFFIX[CONFIG[:-5]]
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(_ModelZooUrls, "S3_PREFIX", f"{tmp_path}/")
    path.write_bytes(pickle.dumps({"model": {}, "__author__": "x"})[:-4])
    with pytest.raises(UserError, match=r"detectron2's copy of the weights .* cannot be used"):
        open_detector(recipe(f"detectron2:{CONFIG}"), "cpu")


# --- ultralytics


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


class Harmful:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def test_yolo_checkpoints_run_no_code(tmp_path: Path) -> None:
    torch.save({"model": Harmful(tmp_path / "it-ran")}, tmp_path / "w.pt")
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
