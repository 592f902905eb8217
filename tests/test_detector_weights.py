"""Third-party weights: every tensor is accounted for, pins are checked, and every fault is one clear sentence."""

import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from factory.config.recipe import Recipe, make_recipe
from factory.config.vocabulary import coco
from factory.dataset.storage import Store
from factory.detector import detectron2 as with_detectron2
from factory.detector.load import check_pin, open_detector, pin_detector, with_pinned_detector
from factory.detector.weights import fill, read_state, split_name
from factory.errors import UserError
from factory.generation.pin import pin_recipe
from factory.generation.run import generate
from tests.support.tiny_detector import tiny_mask2former

MASK_RCNN = "detectron2:COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"


def assert_one_sentence(error: BaseException) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 700


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize("form", ["bare", "model", "state_dict", "parallel", "safetensors", "pkl"])
def test_all_saved_forms_of_tensors_are_read(tmp_path: Path, form: str) -> None:
    state = dict(network().state_dict())
    path = tmp_path / f"w.{form if form in ('safetensors', 'pkl') else 'pth'}"
    if form == "safetensors":
        save_file(state, path)
    elif form == "pkl":
        path.write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in state.items()}, "__author__": "me"}))
    elif form == "parallel":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    else:
        torch.save(state if form == "bare" else {form: state, "iteration": 7}, path)
    found, _ = read_state(path, "it")
    target = network()
    fill(target, found, "it")
    assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())


# --- every tensor is accounted for


def _state(**extra: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(network().state_dict()) | extra


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"other": torch.zeros(2)}, "7 are missing, such as 0.weight; 1 are unknown, such as other"),
        ({k: v for k, v in _state().items() if k != "1.running_mean"}, "1 are missing, such as 1.running_mean"),
        (_state(more=torch.zeros(1)), "1 are unknown, such as more"),
        (_state(**{"0.weight": torch.zeros(3, 9)}), "1 have another shape, such as 0.weight"),
        (_state(**{"0.bias": torch.tensor([0.0, float("nan"), 0.0])}), "damaged: 0.bias contains NaN"),
    ],
)
def test_a_model_is_loaded_completely_or_not_at_all(state: dict[str, torch.Tensor], message: str) -> None:
    target = network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(UserError, match=message) as raised:
        fill(target, state, "the file")
    assert_one_sentence(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_tensors_that_a_config_sets_may_be_missing() -> None:
    state = {name: value for name, value in _state().items() if name != "1.running_mean"}
    fill(network(), state, "the file", may_lack=("running_mean",))


# --- file names


def test_a_files_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.pth").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    model, file = split_name("some_model@w.pth", "torchvision:")
    assert (model, file.path if file else None) == ("some_model", tmp_path / "w.pth")


@pytest.mark.parametrize("prefix", ["torchvision:maskrcnn_resnet50_fpn", MASK_RCNN])
@pytest.mark.parametrize(("content", "message"), [(None, "there is no weight file"), (b"", "is empty; copy it again")])
def test_a_missing_or_empty_file_raises_a_clear_error(
    tmp_path: Path, prefix: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / "w.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        pin_detector(f"{prefix}@{path}")
    with pytest.raises(UserError, match="there is no weight file"):
        pin_detector(f"{prefix}@")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("cat\ndog\n", ("cat", "dog")),
        ("\ufeff__background__\r\ncat\r\nN/A\r\ndog\r\n", ("cat", "N/A", "dog")),
        ("cat\ncat\n", None),
        ("cat\n\ndog\n", None),
        ("\n", None),
        ("N/A\n", None),
    ],
)
def test_a_list_of_classes_is_read_beside_the_weights(
    tmp_path: Path, content: str, expected: tuple[str, ...] | None
) -> None:
    (tmp_path / "w.pth").write_bytes(b"1")
    alone = split_name(f"m@{tmp_path / 'w.pth'}", "torchvision:")[1]
    (tmp_path / "w.classes.txt").write_bytes(content.encode())
    if expected is None:
        with pytest.raises(UserError, match=r"must have one class per line"):
            split_name(f"m@{tmp_path / 'w.pth'}", "torchvision:")
        return
    _, file = split_name(f"m@{tmp_path / 'w.pth'}", "torchvision:")
    assert file is not None
    assert file.labels == expected
    assert alone is not None
    assert alone.digest != file.digest  # the class names are part of the detector's content


def test_a_list_of_classes_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"1")
    (tmp_path / "w.classes.txt").write_bytes("Bär\n".encode("latin1"))
    with pytest.raises(UserError, match="is not UTF-8"):
        split_name(f"m@{tmp_path / 'w.pth'}", "torchvision:")


@pytest.mark.parametrize(
    "name",
    ["/tmp/evil.yaml", "../evil.yaml", "COCO/../../evil.yaml", "~/evil.yaml", "./evil.yaml", "a/b.yml", "a//b.yaml"],
)
def test_only_configs_of_detectron2s_zoo_are_read(name: str) -> None:
    """Its YAML may hold Python objects."""
    with pytest.raises(UserError, match="is not the name of a config in detectron2's model zoo"):
        pin_detector(f"detectron2:{name}")


def test_a_lazy_config_is_refused() -> None:
    with pytest.raises(UserError, match="is a lazy config, which is a program"):
        pin_detector("detectron2:new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py")


# --- pins


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


# --- libraries that do not match


def _put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_a_mismatched_torchvision_affects_only_its_own_detectors(tmp_path: Path) -> None:
    """Such a torchvision raises at import, and transformers and diffusers import it wherever it is installed."""
    _put(
        tmp_path,
        {
            "torchvision/__init__.py": "raise RuntimeError('operator torchvision::nms does not exist')",
            "torchvision-0.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n",
        },
    )
    script = (
        "import factory\n"
        "from transformers import Mask2FormerForUniversalSegmentation\n"
        "from diffusers import StableDiffusionPipeline\n"
        "from factory.detector.load import pin_detector\n"
        "try: pin_detector('torchvision:maskrcnn_resnet50_fpn')\n"
        "except factory.errors.UserError as error: print(error)\n"
    )
    path = f"{tmp_path}:{Path(__file__).parents[1]}"
    ran = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "torchvision 0.1 does not work with torch" in ran.stdout
    assert "operator torchvision::nms does not exist; install the matching build" in ran.stdout


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import pkg_resources_that_is_not_here as pkg_resources", "cannot be imported"),
        (
            "raise ModuleNotFoundError('x', name='pkg_resources')",
            r"setuptools 82 and later no longer have; .*'setuptools<82'",
        ),
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "installed but cannot be imported .operator",
        ),
    ],
)
def test_a_detectron2_that_cannot_be_imported_raises_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    _put(tmp_path, {"detectron2/__init__.py": "", "detectron2/model_zoo/__init__.py": source})
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=message) as raised:
        with_detectron2.labels(MASK_RCNN.removeprefix("detectron2:"))
    assert_one_sentence(raised.value)
    for name in [name for name in sys.modules if name.partition(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)


# --- a file is checked before the dataset's place is claimed


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
