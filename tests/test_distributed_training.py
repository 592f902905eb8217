"""Training on several devices: variables, options and errors of the processes, and signals."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import factory
from factory.config.sections import EngineRecipe
from factory.engine.capacity import Resources
from factory.engine.environment import of_the_driver
from factory.errors import TransientError, UserError
from factory.training import distributed
from factory.training.distributed import train_on_several, uses_gpus
from tests.support.in_process import error


def test_processes_on_other_machines_have_the_variables_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """They travel with the function: the dashboard of Ray shows its configuration."""
    given = {"AWS_SECRET_ACCESS_KEY": "the-secret", "FACTORY_STORE_PATIENCE": "7", "ALLOW_HTTP": "1", "HF_TOKEN": "abc"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    received: list[dict[str, str]] = []
    run = distributed._with_variables(of_the_driver(), lambda config: received.append(dict(os.environ)))
    for name in given:
        monkeypatch.delenv(name)
    run({})
    assert given.items() <= received[0].items()
    assert "the-secret" not in repr(run)


THROUGH_RAY = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from factory.cli import main

@dataclass(frozen=True)
class Run:
    out: str
    batch: int = 4
    threads: int = 1
    device: str = "cpu"

def train_here(run, tests=sys.argv.pop()):
    sys.path.insert(0, tests)
    from tests.support.linear_task import LinearTask
    from factory.training.loop import train
    from factory.training.options import TrainOptions

    class Slow(LinearTask):
        def loss(self, step, batch, seed):
            time.sleep(0.02)
            Path(run.out, "started").touch()
            return super().loss(step, batch, seed)

    return train(Slow(), TrainOptions(100_000, 4, 1e-2, checkpoint_every=50_000), Path(run.out), lambda text: None)

@main.app.command()
def probe(out: str) -> None:
    from factory.training.distributed import train_on_several
    from factory.config.sections import EngineRecipe
    train_on_several(train_here, Run(out), 2, EngineRecipe())

main.run()
"""


def test_several_devices_are_those_that_were_asked_for() -> None:
    """`--device` had no effect: without enough GPUs, processes trained on the CPU although it was cuda."""
    cases = {("auto", 0): False, ("auto", 2): True, ("cuda", 4): True, ("cpu", 4): False}
    assert {case: uses_gpus(case[0], 2, case[1]) for case in cases} == cases
    for device, available in (("cuda", 0), ("cuda", 1), ("auto", 1)):
        with pytest.raises(UserError, match=rf"--devices 2 requires 2 GPUs, and the cluster has {available};"):
            uses_gpus(device, 2, available)


@pytest.mark.parametrize("name", ["train-grounder", "train-segmenter"])
def test_options_that_do_not_fit_the_number_of_devices_are_rejected(name: str, tmp_path: Path) -> None:
    command = [name, "nowhere", "--out", tmp_path / "run"]
    assert "--address auto has no effect with one device" in error(*command, "--address", "auto")
    message = error(*command, "--devices", 2, "--device", "cuda:1")
    assert "--device must be auto, cpu or cuda if there are several --devices, got 'cuda:1'" in message


def test_an_error_of_one_of_several_processes_keeps_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.train.v2.api.exceptions import WorkerGroupError

    def fail(trainer: Any, folder: Path) -> None:
        raise WorkerGroupError("failed", {0: RuntimeError("peer closed"), 1: TransientError("no space left.")})

    monkeypatch.setattr("factory.engine.cluster.connected", lambda engine, threads: nullcontext())
    monkeypatch.setattr("factory.engine.capacity.resources", lambda: Resources([]))
    monkeypatch.setattr(distributed, "_fit", fail)
    run: Any = SimpleNamespace(out=str(tmp_path), batch=2, device="cpu", threads=1)
    with pytest.raises(TransientError, match=r"^no space left\.$"):
        train_on_several(lambda run: tmp_path, run, 2, EngineRecipe())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_a_training_on_several_devices_leaves_a_checkpoint(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Through Ray Train, whose processes hear no signal and which ends them in the middle of a step by itself."""
    out = tmp_path / "run"
    command = [sys.executable, "-c", THROUGH_RAY, "probe", str(out), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": str(Path(factory.__file__).parents[1])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as driver:
        deadline = time.monotonic() + 200
        while not (out / "started").exists() and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        driver.send_signal(number)
        _, said = driver.communicate(timeout=100)
    assert driver.returncode == code, said
    assert 0 < torch.load(out / "checkpoint.pt", weights_only=True)["step"] < 50_000
    assert not (out / "stop").exists()
