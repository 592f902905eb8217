"""The detectors of detectron2 against its `DefaultPredictor`, with seeded weights.

`make test-extras` creates an environment that has it; without it these tests fail.
"""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factory.detector.load import open_detector, with_pinned_detector
from factory.errors import UserError
from tests.support.detector_extras import image, make_detections_likely, recipe, rows
from tests.support.export_datasets import make_dataset, run

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("default")]  # detectron2's dependencies warn
CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"


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
        make_detections_likely(name, value)
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
    assert {row.class_name for row in detector.detect([image()])[0]} == {"griffin"}  # the bias makes the second likely


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


@pytest.mark.parametrize(("polygons", "mask_format"), [(False, "bitmask"), (True, "polygon")])
def test_coco_exports_are_training_data_of_detectron2(tmp_path: Path, polygons: bool, mask_format: str) -> None:
    from detectron2 import model_zoo
    from detectron2.data import DatasetCatalog, DatasetMapper
    from detectron2.data.datasets import register_coco_instances

    store, _ = make_dataset(tmp_path / "set", shards=range(1))
    run(store, tmp_path / "coco", "coco", partial=True, val=0.0, polygons=polygons)
    register_coco_instances(
        f"exported {mask_format}",
        {},
        str(tmp_path / "coco/annotations/instances_train.json"),
        str(tmp_path / "coco/train"),
    )
    config = model_zoo.get_config(CONFIG)
    config.INPUT.MASK_FORMAT = mask_format
    for record in DatasetCatalog.get(f"exported {mask_format}"):
        read = DatasetMapper(config, is_train=True)(record)
        assert len(read["instances"].gt_masks) == len(record["annotations"]) > 0
