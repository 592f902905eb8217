"""Pins of detectors are made and checked, and a file that does not fit is refused before anything is written."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from factory.config.recipe import Recipe, make_recipe
from factory.config.vocabulary import coco
from factory.dataset.storage import Store
from factory.detector.load import check_pin, open_detector, pin_detector, with_pinned_detector
from factory.errors import UserError
from factory.generation.pin import pin_recipe
from factory.generation.run import generate
from tests.support.tiny_detector import tiny_mask2former


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mask2former(tmp_path_factory.mktemp("detector") / "it", coco().names)


def _recipe(detector: str | Path, revision: str | None = None) -> Recipe:
    masks = {"source": "detector", "detector": str(detector), "detector_revision": revision}
    return make_recipe({"n": 1, "classes": "coco", "masks": masks})


def test_a_pin_is_made_and_the_path_made_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    masks = with_pinned_detector(_recipe("./it"))
    assert (masks.detector, masks.detector_revision) == (str(folder), pin_detector(str(folder)))
    assert with_pinned_detector(_recipe(folder, masks.detector_revision)) == masks


def test_another_detector_than_the_pinned_one_is_refused_before_and_in_a_worker(folder: Path) -> None:
    recipe = _recipe(folder, "0" * 40)
    for act in (lambda: with_pinned_detector(recipe), lambda: open_detector(recipe, "cpu")):
        with pytest.raises(UserError, match=f"pins the detector .* as {'0' * 40}, but its content is now"):
            act()


def test_a_file_swapped_under_its_pin_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"old")
    name = f"torchvision:maskrcnn_resnet50_fpn@{path}"
    recipe = _recipe(name, pin_detector(name))
    check_pin(recipe.masks)
    path.write_bytes(b"new")
    with pytest.raises(UserError, match="pins the detector"):
        check_pin(recipe.masks)


def test_a_run_of_a_pinned_recipe_checks_the_pin(folder: Path) -> None:
    with pytest.raises(UserError, match="pins the detector"):
        pin_recipe(_recipe(folder, "0" * 40))


class _Rcnn(nn.Module):
    """A stand-in for torchvision's model, which is an extra: as many outputs as classes, named as its last layer's."""

    def __init__(self, num_classes: int, **options: object) -> None:
        super().__init__()
        self.roi_heads = nn.ModuleDict({"box_predictor": nn.ModuleDict({"cls_score": nn.Linear(2, num_classes)})})


@pytest.mark.parametrize(
    ("classes", "change", "told"),
    [
        ("dog\ncat\n", lambda state: state.pop("roi_heads.box_predictor.cls_score.weight"), "1 are missing"),
        ("dog\ncat\n", lambda state: state.update(other=torch.zeros(1)), "1 are unknown, such as other"),
        ("dog\ncat\ncow\n", lambda state: None, "has 2 classes besides background, but .* names 3"),
        ("dog\ncow\n", lambda state: None, "does not know 1 of the classes: cat"),
    ],
)
def test_a_detectors_file_that_does_not_fit_is_refused_before_the_place_is_claimed(
    classes: str, change: Any, told: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = SimpleNamespace(DEFAULT=SimpleNamespace(meta={"categories": ["__background__", *coco().names]}))
    models = SimpleNamespace(
        get_model_weights=lambda builder: weights, detection=SimpleNamespace(maskrcnn_resnet50_fpn_v2=_Rcnn)
    )
    monkeypatch.setattr("factory.detector.torchvision._library", lambda: SimpleNamespace(models=models))
    state = dict(_Rcnn(3).state_dict())
    recipe = make_recipe(
        {
            "n": 1,
            "classes": ["dog", "cat"],
            "generator": {"model": str(tiny_model), "steps": 2, "solver": "ddim", "dtype": "float32"},
            "masks": {"source": "detector", "detector": f"torchvision:maskrcnn_resnet50_fpn_v2@{tmp_path / 'w.pth'}"},
        }
    )
    (tmp_path / "w.classes.txt").write_text("dog\ncat\n")
    torch.save(state, tmp_path / "w.pth")
    assert pin_recipe(recipe).masks.detector_revision
    (tmp_path / "w.classes.txt").write_text(classes)
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=told):
        generate(recipe, Store(str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_the_embedded_detector_must_know_the_classes_of_the_prompts_only(tiny_model: Path) -> None:
    """All classes had to be of COCO, and the message advised another --model, which was given."""
    data = {
        "n": 1,
        "classes": ["dog", "axolotl"],
        "generator": {"model": str(tiny_model)},
        "masks": {"source": "detector"},
    }
    with pytest.raises(UserError, match=r"the detector does not know 1 of the classes: axolotl; .* another --detector"):
        pin_recipe(make_recipe(data))
    oracle = make_recipe(data | {"oracle": {"split": "mine", "seen": ["dog"]}})
    assert pin_recipe(oracle).masks.detector_revision is not None
