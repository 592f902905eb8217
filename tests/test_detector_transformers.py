"""Each documented detector class of transformers against the library's own post-processing, with random weights."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from factory.config.recipe import Recipe, make_recipe
from factory.config.vocabulary import coco
from factory.dataset.records import Instance
from factory.detector.load import open_detector
from factory.errors import UserError
from tests.support.harmful_pickle import HarmfulPickle
from tests.support.library_detections import MIN_SCORE, Row, library_answer, library_rows
from tests.support.tiny_detectors import TINY_DETECTORS

LABELS = ["N/A", *coco().names]
KINDS = list(TINY_DETECTORS)


def _recipe(folder: Path) -> Recipe:
    return make_recipe({"n": 1, "classes": "coco", "masks": {"source": "detector", "detector": str(folder)}})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("detectors")
    return {name: TINY_DETECTORS[name](parent / name, coco().names) for name in KINDS}


def image(height: int = 64, width: int = 96) -> np.ndarray:
    """A random image that is not square."""
    return np.random.default_rng(7).integers(0, 255, (height, width, 3), np.uint8)


def detect(folder: Path, picture: np.ndarray) -> list[Instance]:
    (found,) = open_detector(_recipe(folder), "cpu").detect([picture])
    return found


def assert_same(found: Sequence[Instance], expected: Sequence[Row]) -> None:
    named = [row for row in expected if LABELS[row[0]] != "N/A" and row[2].any()]
    assert len(found) == len(named) > 0
    for ours, theirs in zip(_sorted(found), sorted(named, key=_order), strict=True):
        assert ours.class_name == LABELS[theirs[0]]
        assert ours.score == pytest.approx(theirs[1], abs=1e-5)  # the last digit depends on the processor
        assert np.array_equal(ours.mask, theirs[2])


def _sorted(found: Sequence[Instance]) -> list[Instance]:
    return sorted(found, key=lambda row: (-row.score, row.class_name, row.mask.tobytes()))


def _order(row: Row) -> tuple[Any, ...]:
    return -row[1], LABELS[row[0]], row[2].tobytes()


@pytest.mark.parametrize("name", ["mask2former", "maskformer"])
def test_overlapping_instances_match_the_library(folders: dict[str, Path], name: str) -> None:
    expected, _ = library_rows(folders[name], image(), target_sizes=[(64, 96)], return_binary_maps=True)
    assert_same(detect(folders[name], image()), expected)


def test_detr_instances_and_scores_match_the_library(folders: dict[str, Path]) -> None:
    found = detect(folders["detr"], image())
    expected, _ = library_rows(folders["detr"], image(), target_sizes=[(64, 96)])
    assert_same(found, expected)
    _, answer = library_answer(folders["detr"], image())
    assert found[0].score == pytest.approx(float(answer.logits.softmax(-1)[..., :-1].max()), abs=1e-5)


def test_oneformer_instances_match_the_library(folders: dict[str, Path]) -> None:
    """Without torchvision the library returns masks in the size of the logits only: 16 x 16 for 64 x 64 pixels."""
    expected, _ = library_rows(folders["oneformer"], image(16, 16))
    assert_same(detect(folders["oneformer"], image(16, 16)), expected)
    assert {row.mask.shape for row in detect(folders["oneformer"], image())} == {(64, 96)}


@torch.inference_mode()
def test_rf_detr_instances_are_the_most_probable_pairs_of_query_and_class(folders: dict[str, Path]) -> None:
    """tests/detector_extras/ compares with the image processor of the library, which requires torchvision."""
    from transformers import RfDetrForInstanceSegmentation

    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    pixels = torch.from_numpy(image()).permute(2, 0, 1)[None] * (1 / 255)
    resized = torch.nn.functional.interpolate(pixels, (64, 64), mode="bilinear")
    answer = RfDetrForInstanceSegmentation.from_pretrained(folders["rf_detr"]).eval()((resized - mean) / std)
    probabilities = answer.logits[0].sigmoid()
    masks = torch.nn.functional.interpolate(answer.pred_masks, (64, 96), mode="bilinear")[0] > 0
    expected: list[Row] = []
    for position in probabilities.flatten().argsort(descending=True)[: len(probabilities)].tolist():
        query, label = divmod(position, probabilities.shape[1])
        expected.append((label, round(float(probabilities[query, label]), 6), masks[query].numpy()))
    assert_same(detect(folders["rf_detr"], image()), [row for row in expected if row[1] > MIN_SCORE])


@pytest.mark.parametrize("size", [(64, 96), (80, 40), (64, 64)])
def test_eomt_masks_exclude_the_padding(folders: dict[str, Path], size: tuple[int, int]) -> None:
    """The library paints instances over each other; ours, painted in the same order, give the same segmentation."""
    found = detect(folders["eomt"], image(*size))
    expected, painted = library_rows(folders["eomt"], image(*size), target_sizes=[size])
    ordered = sorted(found, key=lambda row: (row.class_name, row.score))
    known = sorted((LABELS[label], score) for label, score, _ in expected if LABELS[label] != "N/A")
    assert [row.class_name for row in ordered] == [name for name, _ in known]
    # The last digit depends on the processor.
    assert [row.score for row in ordered] == pytest.approx([score for _, score in known], abs=1e-5)
    ours = torch.full(size, -1.0)
    for number, (label, score, mask) in enumerate(expected):
        nearest = min(found, key=lambda row: abs(row.score - score))
        ours[torch.from_numpy(mask if LABELS[label] == "N/A" else nearest.mask)] = number
    assert len(expected) > 5
    assert torch.equal(ours, painted)


@pytest.mark.parametrize("name", KINDS)
def test_images_of_mixed_sizes_are_detected_as_if_alone(folders: dict[str, Path], name: str) -> None:
    detector = open_detector(_recipe(folders[name]), "cpu")
    pictures = [image(), image(80, 48)]
    for rows, picture in zip(detector.detect(pictures), pictures, strict=True):
        (alone,) = detector.detect([picture])
        assert [(row.class_name, row.score) for row in rows] == [(row.class_name, row.score) for row in alone]
        assert all(row.mask.shape == picture.shape[:2] and row.score >= MIN_SCORE for row in rows)
    assert detector.detect([]) == []


def _copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def _without_a_tensor(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state.pop(next(name for name in state if "class_predictor" in name))
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def _with_a_tensor(folder: Path) -> None:
    state = load_file(folder / "model.safetensors") | {"model.more.weight": torch.zeros(2)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def _foreign(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<html>404</html>" * 10)


def _another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"hidden_dim": 16}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_a_tensor, "1 tensor is missing, such as class_predictor"),
        (_with_a_tensor, "1 tensor is unknown, such as model.more.weight"),
        (_truncated, "cannot be loaded"),
        (_empty, "cannot be loaded"),
        (_foreign, "cannot be loaded"),
        (_another_shape, "cannot be loaded"),
    ],
)
def test_weights_that_do_not_fill_the_model_are_refused(
    folders: dict[str, Path], tmp_path: Path, damage: Any, message: str
) -> None:
    folder = _copy(folders["mask2former"], tmp_path / "copy")
    damage(folder)
    with pytest.raises(UserError, match=message) as raised:
        open_detector(_recipe(folder), "cpu")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_tables_that_older_releases_stored_are_accepted(folders: dict[str, Path], tmp_path: Path) -> None:
    """Published models on a Swin contain the indices of relative positions, which are computed today."""
    folder = _copy(folders["mask2former"], tmp_path / "copy")
    state = load_file(folder / "model.safetensors")
    tables = [name.replace("bias_table", "index") for name in state if name.endswith("relative_position_bias_table")]
    assert tables
    surplus = {name: torch.zeros(4, 4, dtype=torch.int64) for name in [*tables, "model.text.embeddings.position_ids"]}
    save_file(state | surplus, folder / "model.safetensors", {"format": "pt"})
    open_detector(_recipe(folder), "cpu")


def test_a_backbone_of_another_library_names_that_library(folders: dict[str, Path], tmp_path: Path) -> None:
    """As in facebook/detr-resnet-50-panoptic."""
    if find_spec("timm") is not None:
        pytest.skip("timm is installed")
    folder = _copy(folders["detr"], tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config |= {"use_timm_backbone": True, "backbone": "resnet50", "backbone_config": None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"requires another library .* requires the timm library .*; install it"):
        open_detector(_recipe(folder), "cpu")


def test_a_models_own_code_is_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, mark = _copy(folders["mask2former"], tmp_path / "copy"), tmp_path / "it-ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    code = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForUniversalSegmentation": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config | code))
    open_detector(_recipe(folder), "cpu")  # the library knows this type itself
    (folder / "config.json").write_text(json.dumps(config | code | {"model_type": "evil"}))
    with pytest.raises(UserError, match="is not an instance segmentation model of transformers"):
        open_detector(_recipe(folder), "cpu")
    assert not mark.exists()


def test_a_pickle_in_place_of_weights_is_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, mark = _copy(folders["mask2former"], tmp_path / "copy"), tmp_path / "it-ran"
    (folder / "model.safetensors").unlink()
    torch.save({"class_predictor.weight": HarmfulPickle(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        open_detector(_recipe(folder), "cpu")
    assert not mark.exists()


def test_a_model_of_semantic_segmentation_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = _copy(folders["eomt"], tmp_path / "copy")
    settings = json.loads((folder / "preprocessor_config.json").read_text()) | {"do_split_image": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="semantic segmentation"):
        open_detector(_recipe(folder), "cpu")


def test_an_unavailable_hub_model_raises_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"nobody/nothing cannot be loaded from the hub or its cache .*; check the id"
    ) as raised:
        open_detector(_recipe(Path("nobody/nothing")), "cpu")
    assert "\n" not in str(raised.value)
