"""Open-vocabulary detectors: names, types and files that are rejected."""

import json
import shutil
from pathlib import Path

import pytest

from factory.detector.load import open_detector, with_pinned_detector
from factory.errors import UserError
from tests.support.tiny_open_vocabulary import one_of_each, recipe


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return one_of_each(tmp_path_factory.mktemp("open"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sam3:", r"must have the form sam3:MODEL; each part is"),
        ("owlv2:{owlv2}", r"must have the form owlv2:MODEL\+SAM2, as in owlv2:google"),
        ("sam3:{sam3}+{sam2}", r"must have the form sam3:MODEL;"),
        ("sam3:{sam2}", "is of the type 'sam2', but the detector sam3 requires sam3 or sam3_video here"),
        ("grounding-dino:{owlv2}+{sam2}", "is of the type 'owlv2', but the detector grounding-dino requires grounding"),
        ("owlv2:{owlv2}+{sam3}", "is of the type 'sam3', but the detector owlv2 requires sam2 or sam2_video here"),
        ("clipseg:/no/where", "there is no folder /no/where; give the folder or hub id"),
    ],
)
def test_wrong_names_are_rejected(models: dict[str, Path], name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_pinned_detector(recipe(name.format(**models)))


@pytest.mark.parametrize(("model", "form"), [("sam3", "sam3:"), ("owlv2", "owlv2:"), ("clipseg", "clipseg:")])
def test_a_model_without_its_kind_is_rejected_with_the_right_form(
    models: dict[str, Path], model: str, form: str
) -> None:
    with pytest.raises(UserError, match=f"is an open-vocabulary model .*; give it as {form}"):
        with_pinned_detector(recipe(str(models[model])))


def test_incomplete_models_are_rejected(models: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in models["sam3"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensor is missing, such as text_projection.weight"):
        open_detector(recipe(f"sam3:{tmp_path}"), "cpu")
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text()) | {"size": {"shortest_edge": 3}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="does not describe what is supported"):
        open_detector(recipe(f"sam3:{tmp_path}"), "cpu")


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("sam3:{sam3}", "dog " * 40, "too long for the detector .*: its query has 42 tokens, but the model reads 32"),
        ("clipseg:{clipseg}", "dog " * 100, "is too long for the detector"),
        ("owlv2:{owlv2}+{sam2}", "dog " * 20, r"its query has \d+ tokens, but the model reads 16;"),
        ("grounding-dino:{grounding-dino}+{sam2}", "dog " * 300, "is too long for the detector"),
        ("grounding-dino:{grounding-dino}+{sam2}", "...", r"the class name '\.\.\.' has no words that the detector"),
        ("grounding-dino:{grounding-dino}+{sam2}", "狗", "the class name '狗' has no words that the detector .* knows"),
    ],
)
def test_class_names_that_a_model_cannot_read_are_rejected(
    models: dict[str, Path], kind: str, name: str, message: str
) -> None:
    """Before a dataset is created, and again by the worker."""
    named = recipe(kind.format(**models), classes=["dog", name.strip()])
    for check in (with_pinned_detector, lambda recipe: open_detector(recipe, "cpu")):
        with pytest.raises(UserError, match=message):
            check(named)


@pytest.mark.parametrize("size", [{"height": 64, "width": 96}, {"height": 32, "width": 32}])
def test_sam2_that_resizes_to_another_size_than_that_of_its_boxes_is_rejected(
    models: dict[str, Path], tmp_path: Path, size: dict[str, int]
) -> None:
    sam2 = shutil.copytree(models["sam2"], tmp_path / "sam2")
    settings = json.loads((sam2 / "preprocessor_config.json").read_text()) | {"size": size}
    (sam2 / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=rf"resizes images to {size['height']} x {size['width']} .* to 64 x 64"):
        open_detector(recipe(f"owlv2:{models['owlv2']}+{sam2}"), "cpu")
