"""A training that ends early continues from its checkpoint to the same weights; no other training continues from it."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from factory.errors import UserError
from factory.training import loop
from factory.training.loop import train
from factory.training.options import CHECKPOINT, TrainOptions
from tests.support.linear_task import OPTIONS, LinearTask


class _DropoutTask(LinearTask):
    """Its weights depend on the random numbers of every step. `interrupt` is called in a step, `data` is its data."""

    def __init__(self, interrupt: Callable[[], None] | None = None, step: int = 0, data: str = "a line") -> None:
        super().__init__()
        self.depends_on = {"data": data}
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.1), nn.Linear(8, 1))
        self.interrupt, self.interrupted_step = interrupt, step

    def loss(self, step: int, batch: int, seed: int) -> Tensor:
        if self.interrupt is not None and step == self.interrupted_step:
            self.interrupt()
        return super().loss(step, batch, seed)


def _silent(text: str) -> None:
    pass


def _weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "weights.pt", weights_only=True)


def _are_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def _fail() -> None:
    raise KeyboardInterrupt


def _signal() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("interrupt", "resumed_at"),
    [pytest.param(_fail, 20, id="in a step"), pytest.param(_signal, 27, id="by a signal, which waits for the step")],
)
def test_an_interrupted_training_resumes_to_the_same_weights(
    interrupt: Callable[[], None], resumed_at: int, tmp_path: Path
) -> None:
    whole = train(_DropoutTask(), OPTIONS, tmp_path / "whole", _silent)
    with pytest.raises(KeyboardInterrupt):
        train(_DropoutTask(interrupt, 26), OPTIONS, tmp_path / "cut", _silent)
    reports: list[str] = []
    resumed = train(_DropoutTask(), OPTIONS, tmp_path / "cut", reports.append)
    assert any(f"resuming at step {resumed_at} of 40" in report for report in reports)
    assert _are_equal(_weights(whole), _weights(resumed))


def test_a_checkpoint_that_cannot_be_read_is_not_recommended_to_be_unpickled(tmp_path: Path) -> None:
    """The message of torch recommends `weights_only=False`."""
    torch.save({"step": Path("objects")}, tmp_path / CHECKPOINT)
    with pytest.raises(
        UserError, match=r"cannot be read \(it contains objects other than tensors, which could run code"
    ):
        train(_DropoutTask(), OPTIONS, tmp_path, _silent)


def test_a_training_starts_from_the_weights_of_a_trained_model(tmp_path: Path) -> None:
    first = train(_DropoutTask(), OPTIONS, tmp_path / "first", _silent)
    still = TrainOptions(steps=1, batch=4, learning_rate=0.0, start=str(first))
    second = train(_DropoutTask(), still, tmp_path / "second", _silent)
    assert _are_equal(_weights(first), _weights(second))
    with pytest.raises(UserError, match=r"training of the linear cannot start from .* \(there is no such folder\)"):
        train(_DropoutTask(), TrainOptions(1, 4, 0.1, start=str(tmp_path / "nowhere")), tmp_path / "third", _silent)
    assert not (tmp_path / "third").exists()


def test_slow_steps_are_saved_before_the_next_regular_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed training lost up to 200 steps, which may have taken hours."""
    monkeypatch.setattr(loop, "_MAX_UNSAVED", 0.0)
    options, reports = replace(OPTIONS, checkpoint_every=1000), list[str]()
    with pytest.raises(KeyboardInterrupt):
        train(_DropoutTask(_fail, 26), options, tmp_path, _silent)
    train(_DropoutTask(), options, tmp_path, reports.append)
    assert reports[0] == "linear: resuming at step 26 of 40"


def test_a_training_resumes_from_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was refused, because the relative path of its start was another one."""
    train(_DropoutTask(), OPTIONS, tmp_path / "first", _silent)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(_DropoutTask(_fail, 26), replace(OPTIONS, start="first/model"), tmp_path / "second", _silent)
    monkeypatch.chdir(tmp_path / "below")
    train(_DropoutTask(), replace(OPTIONS, start="../first/model"), tmp_path / "second", _silent)
    with pytest.raises(UserError, match=r"start was .*/first/model, is .*/other"):
        train(_DropoutTask(), replace(OPTIONS, start="../other"), tmp_path / "second", _silent)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    train(_DropoutTask(), OPTIONS, tmp_path, _silent)
    other = TrainOptions(steps=40, batch=8, learning_rate=1e-2, ema_decay=0.9, checkpoint_every=10)
    with pytest.raises(UserError, match="batch was 4, is 8"):
        train(_DropoutTask(), other, tmp_path, _silent)
    with pytest.raises(UserError, match="data was a line, is a curve"):
        train(_DropoutTask(data="a curve"), OPTIONS, tmp_path, _silent)


def test_a_truncated_checkpoint_raises_a_clear_error(tmp_path: Path) -> None:
    train(_DropoutTask(), OPTIONS, tmp_path, _silent)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        train(_DropoutTask(), OPTIONS, tmp_path, _silent)


def test_a_checkpoint_that_does_not_record_its_dependencies_is_refused(tmp_path: Path) -> None:
    train(LinearTask(), OPTIONS, tmp_path, _silent)
    ordered = LinearTask()
    ordered.depends_on = {"data": "linear", "classes": "a, b"}
    with pytest.raises(UserError, match="does not record its classes"):
        train(ordered, OPTIONS, tmp_path, _silent)


@pytest.mark.parametrize("content", [{"model": 1}, [1, 2], torch.zeros(2)])
def test_a_file_that_is_no_checkpoint_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=r"checkpoint.pt is not a checkpoint of this program"):
        train(LinearTask(), OPTIONS, tmp_path, _silent)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(LinearTask(), OPTIONS, tmp_path, _silent)
    wider = LinearTask()
    wider.model = torch.nn.Linear(7, 3)
    with pytest.raises(UserError, match=r"does not fit this model \(.*size mismatch.*\), perhaps because another"):
        train(wider, OPTIONS, tmp_path, _silent)
