"""The training loop: its log, several processes, NaN, and the options that are refused."""

import errno
import io
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import factory
from factory.errors import GpuError, TransientError, UserError, full_disk
from factory.files.strict_json import dumps
from factory.training import progress
from factory.training.checkpoint import save_checkpoint
from factory.training.devices import chosen_device
from factory.training.loop import train
from factory.training.options import TrainOptions
from tests.support.linear_task import OPTIONS, LinearTask, gradients_of_part


def _silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str, str]]]:
    """The folder of two processes that trained together, and their (exit code, stdout, stderr)."""
    out = tmp_path_factory.mktemp("together")
    program = [sys.executable, str(Path(__file__).parent / "support" / "linear_task.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(factory.__file__).parents[1])}
    processes = [
        subprocess.Popen([*program, str(rank), str(out)], stdout=-1, stderr=-1, text=True, env=environment)
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    return out, [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def test_only_the_first_process_writes_and_reports(together: Any) -> None:
    out, (first, second) = together
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    entries = [json.loads(line) for line in (out / "whole/log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [20, 40, 40]
    assert len(list((out / "whole/board").iterdir())) == 1
    assert "step 40/40" in first[1]
    assert second[1] == ""


def test_two_processes_with_unequal_parts_have_the_gradient_of_the_whole_batch(together: Any) -> None:
    """The average of two means gave a pixel more weight, the fewer pixels of its process count."""
    out, _ = together
    first, second = (torch.load(out / f"gradients-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert (first + second) / 2 == pytest.approx(gradients_of_part(0, 1), rel=1e-4)


def test_processes_draw_different_random_numbers(together: Any) -> None:
    """Dropout and the sampled points of Mask2Former were the same for the samples of every process."""
    out, _ = together
    first, second = (torch.load(out / f"drawn-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert not torch.equal(first, second)


def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path) -> None:
    """The second one replaced the checkpoints and a part of the model of the first."""

    class Nested(LinearTask):
        def loss(self, step: int, batch: int, seed: int) -> Tensor:
            with pytest.raises(TransientError, match="another command is writing to"):
                train(LinearTask(), OPTIONS, tmp_path, _silent)
            return super().loss(step, batch, seed)

    train(Nested(), replace(OPTIONS, steps=1), tmp_path, _silent)
    assert train(Nested(), replace(OPTIONS, steps=1), tmp_path, _silent) == tmp_path / "model"


def test_a_full_disk_under_a_checkpoint_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch raised a RuntimeError that did not name the cause, which ended the command with a traceback."""

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda path, *arguments: Full(path, "w"))
    state: Any = {"model": torch.nn.Linear(2, 2), "average": torch.nn.Linear(2, 2)}
    with pytest.raises((RuntimeError, OSError)) as failure:
        save_checkpoint("linear", tmp_path, state, {}, 1)
    assert full_disk(failure.value) == "No space left on device"
    assert not list(tmp_path.iterdir())


def test_slow_steps_are_reported_before_the_twentieth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty steps of a large model on a CPU took ten minutes, without a word."""
    lines, clock = list[str](), iter([0.0, 29.0, 31.0, 60.0, 62.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    reported = progress.Progress("linear", 0, 40, None, lines.append)
    for step in range(1, 5):
        reported.advance(step, 1.0)
    assert [line.split("  ")[0] for line in lines] == ["linear step 2/40", "linear step 4/40"]


def test_weights_without_gradient_are_named(tmp_path: Path) -> None:
    class Detached(LinearTask):
        def __init__(self) -> None:
            super().__init__()
            self.model.unused = torch.nn.Linear(2, 2)

    lines: list[str] = []
    train(Detached(), OPTIONS, tmp_path / "detached", lines.append)
    warning = "linear: warning: 2 of 4 weights receive no gradient and are not trained, such as unused.weight"
    assert lines.count(warning) == 1
    lines.clear()
    train(LinearTask(), OPTIONS, tmp_path / "whole", lines.append)
    assert not [line for line in lines if "warning" in line]


def test_a_nan_in_one_process_stops_both(together: Any) -> None:
    out, results = together
    for _, _, stderr in results:
        assert "its loss is nan at step 26; the checkpoint" in stderr
    assert torch.load(out / "broken/checkpoint.pt", weights_only=True)["step"] == 20


def test_two_processes_that_are_asked_to_stop_leave_a_checkpoint_of_that_step_and_go_on_from_it(together: Any) -> None:
    out, _ = together
    assert torch.load(out / "stopped/kept.pt", weights_only=True)["step"] == 27
    whole, resumed = (torch.load(out / name / "model/weights.pt", weights_only=True) for name in ("whole", "stopped"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_sigterm_leaves_a_checkpoint_of_the_current_step(tmp_path: Path) -> None:
    class Stopped(LinearTask):
        def loss(self, step: int, batch: int, seed: int) -> Tensor:
            if step == 13:
                signal.raise_signal(signal.SIGTERM)
            return super().loss(step, batch, seed)

    with pytest.raises(KeyboardInterrupt):
        train(Stopped(), OPTIONS, tmp_path, _silent)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 14


def test_a_nan_loss_stops_the_training_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"its loss is nan at step 26; the checkpoint .*checkpoint.pt is intact"):
        train(LinearTask(nan_at=25), OPTIONS, tmp_path, _silent)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 20
    assert all(value.isfinite().all() for value in saved["model"].values())
    assert not (tmp_path / "model").exists()
    with pytest.raises(UserError, match="at step 1; no checkpoint was written"):
        train(LinearTask(nan_at=0), OPTIONS, tmp_path / "other", _silent)


def test_a_nan_gradient_with_a_finite_loss_stops_the_training(tmp_path: Path) -> None:
    class Root(LinearTask):
        def loss(self, step: int, batch: int, seed: int) -> Tensor:
            return (self.model.weight * 0).sum().sqrt() + super().loss(step, batch, seed)

    with pytest.raises(UserError, match="its gradient norm is nan at step 1"):
        train(Root(), OPTIONS, tmp_path, _silent)


def test_non_finite_weights_do_not_replace_a_checkpoint(tmp_path: Path) -> None:
    class Broken(LinearTask):
        def __init__(self) -> None:
            super().__init__()
            self.model.register_buffer("mean", torch.zeros(1))

        def loss(self, step: int, batch: int, seed: int) -> Tensor:
            if step == 19:  # like running statistics that overflow after the loss of this step
                self.model.mean.fill_(math.inf)
            return super().loss(step, batch, seed)

    with pytest.raises(UserError, match="its weight mean is not finite after step 20"):
        train(Broken(), OPTIONS, tmp_path, _silent)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 10


def test_loss_and_time_left_are_reported_and_logged(tmp_path: Path) -> None:
    reports: list[str] = []
    train(LinearTask(), TrainOptions(steps=40, batch=64, learning_rate=0.1), tmp_path, reports.append)
    assert any("loss" in report and "min left" in report for report in reports)

    def refuse(text: str) -> None:
        raise AssertionError(text)

    entries = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    *steps, metrics = entries
    assert [entry["step"] for entry in steps] == [20, 40]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert metrics == {"step": 40, "nothing": None}, "the metric is NaN, which JSON has not"
    assert list((tmp_path / "board").iterdir())
    assert (tmp_path / "samples-000040.png").exists()


def test_nan_and_infinity_become_null_in_json() -> None:
    value = {"a": [math.nan, 1.5, (math.inf, "NaN")], "b": {"c": -math.inf}, "d": True}
    assert json.loads(dumps(value)) == {"a": [None, 1.5, [None, "NaN"]], "b": {"c": None}, "d": True}


def test_zero_steps_and_a_missing_gpu_are_refused() -> None:
    with pytest.raises(UserError, match="at least one step"):
        TrainOptions(steps=0, batch=4, learning_rate=1e-3)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="PyTorch finds no GPU"):
            TrainOptions(steps=1, batch=4, learning_rate=1e-3, device="cuda")


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1.0])
def test_an_invalid_learning_rate_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match="the learning rate must be"):
        TrainOptions(steps=1, batch=1, learning_rate=rate)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(UserError, match="the seed of a training must be a number from 0 to 4294967295"):
        TrainOptions(steps=1, batch=1, learning_rate=0.1, seed=seed)


@pytest.mark.parametrize("name", ["gpu", "mps", "cpu:x", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="there is no device"):
        chosen_device(name)


def test_auto_selects_the_gpu_if_there_is_one() -> None:
    assert chosen_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_step_that_does_not_fit_into_gpu_memory_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    task = LinearTask()
    monkeypatch.setattr(task, "loss", fails)
    message = r"too little free memory for the training of the linear \(CUDA out of memory.*give a smaller --batch"
    with pytest.raises(GpuError, match=message):
        train(task, OPTIONS, tmp_path, lambda text: None)


def test_other_users_can_read_the_weights(tmp_path: Path) -> None:
    """safetensors creates files that only their owner can read."""

    class Saved(LinearTask):
        def save(self, model: torch.nn.Module, folder: Path) -> None:
            (folder / "part").mkdir(parents=True)
            save_file(model.state_dict(), folder / "part" / "model.safetensors")

    before = os.umask(0o027)
    try:
        model = train(Saved(), OPTIONS, tmp_path, _silent)
    finally:
        os.umask(before)
    assert (model / "part" / "model.safetensors").stat().st_mode & 0o777 == 0o640
