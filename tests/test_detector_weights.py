"""Third-party weights: every tensor is accounted for, and every fault is one clear sentence."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from factory.detector.load import pin_detector
from factory.detector.weights import fill, read_state, split_name
from factory.errors import UserError
from tests.support.messages import assert_one_sentence

MASK_RCNN = "detectron2:COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"


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
