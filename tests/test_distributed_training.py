"""Training on several devices: variables, options and errors of the processes, and signals."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import factory
from factory.engine.capacity import ClusterResources
from factory.engine.environment import of_the_driver
from factory.errors import TransientError, UserError
from factory.segmenter.run import SegmenterTraining
from factory.training import distributed
from factory.training.distributed import uses_gpus
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


def test_several_devices_are_those_that_were_asked_for() -> None:
    """`--device` had no effect: without enough GPUs, processes trained on the CPU although it was cuda."""
    cases = {("auto", 0): False, ("auto", 2): True, ("cuda", 4): True, ("cpu", 4): False}
    assert {case: uses_gpus(case[0], 2, ClusterResources([{"CPU": 2, "GPU": case[1]}])) for case in cases} == cases
    for device, available in (("cuda", 0), ("cuda", 1), ("auto", 1)):
        with pytest.raises(UserError, match=rf"--devices 2 requires 2 GPUs, and the cluster has {available};"):
            uses_gpus(device, 2, ClusterResources([{"CPU": 2, "GPU": available}]))


def test_too_few_cpus_are_an_error_unless_the_cluster_grows() -> None:
    """Ray Train waited without end for CPUs that no node has."""
    small = [{"CPU": 1.0}, {"CPU": 2.0, "GPU": 0.0}]
    for device in ("auto", "cpu"):
        with pytest.raises(UserError, match=r"--devices 4 requires 4 CPUs, and the cluster has 3; give fewer"):
            uses_gpus(device, 4, ClusterResources(small))
        assert not uses_gpus(device, 4, ClusterResources(small, scales=True))
        assert not uses_gpus(device, 3, ClusterResources(small))


@pytest.mark.parametrize("name", ["train-grounder", "train-segmenter"])
def test_options_that_do_not_fit_the_number_of_devices_are_rejected(name: str, tmp_path: Path) -> None:
    command = [name, "nowhere", "--out", tmp_path / "run"]
    assert "--address auto has no effect with one device" in error(*command, "--address", "auto")
    message = error(*command, "--devices", 2, "--device", "cuda:1")
    assert "--device must be auto, cpu or cuda if there are several --devices, got 'cuda:1'" in message


def test_an_error_of_one_of_several_processes_keeps_its_exit_code(
    tmp_path: Path,
) -> None:
    from ray.train.v2.api.exceptions import WorkerGroupError

    failures = {0: RuntimeError("peer closed"), 1: TransientError("no space left.")}
    with pytest.raises(TransientError, match=r"^no space left\.$"):
        fit_that_raises(WorkerGroupError("failed", failures), tmp_path)


def fit_that_raises(error: BaseException, folder: Path, number: signal.Signals | None = None) -> None:
    """Run a training that ends with an error, after a signal if there is one."""

    def fit() -> None:
        if number is not None:
            os.kill(os.getpid(), number)
            deadline = time.monotonic() + 20
            while not (folder / "stop").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        raise error

    distributed._fit(SimpleNamespace(fit=fit), folder, lambda stopping: None)


def died() -> BaseException:
    from ray.exceptions import ActorDiedError

    return ActorDiedError()


def lost_process() -> BaseException:
    from ray.train.v2.api.exceptions import WorkerGroupError

    return WorkerGroupError("failed", {0: RuntimeError("peer closed"), 1: died()})


@pytest.mark.parametrize("error", [died, lost_process])
def test_lost_processes_are_a_temporary_failure_and_expected_after_a_signal(
    error: Callable[[], BaseException], tmp_path: Path
) -> None:
    """A signal to the process group, as of Slurm and `timeout`, ends Ray as well; this ended in a traceback."""
    with pytest.raises(TransientError, match=r"were lost: .* The last checkpoint is kept"):
        fit_that_raises(error(), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit_that_raises(error(), tmp_path, signal.SIGTERM)
    assert not (tmp_path / "stop").exists()


def test_a_lost_cluster_ends_the_training(tmp_path: Path) -> None:
    """Ray waits for a minute and then aborts the process."""
    ends = threading.Event()
    with pytest.raises(TransientError, match=r"^Ray died\. The last checkpoint is kept"):
        distributed._fit(SimpleNamespace(fit=lambda: ends.wait(20)), tmp_path, lambda stopping: "Ray died")
    ends.set()


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, TransientError, "cannot write: No space left on device. Free some space and rerun the same"),
        (errno.EIO, UserError, "cannot use a file: Input/output error; check the disk, and rerun the same"),
    ],
)
def test_the_error_of_a_full_or_broken_disk_reaches_the_driver(
    number: int, kind: type[UserError], message: str
) -> None:
    def train_here(run: Any) -> None:
        raise RuntimeError("cannot write the archive") from OSError(number, os.strerror(number))

    with pytest.raises(UserError, match=f"^{message} command\\.$") as raised:
        distributed._train_process({"gpus": 0, "run": SegmenterTraining("out"), "train_here": train_here})
    assert type(raised.value) is kind


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "group"),
    [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, False), (signal.SIGTERM, 143, True)],
)
def test_a_signal_to_a_training_on_several_devices_leaves_a_checkpoint(
    tmp_path: Path, number: signal.Signals, code: int, group: bool
) -> None:
    """Through Ray Train, whose processes hear no signal and which ends them in the middle of a step by itself.

    Slurm, `timeout` and systemd signal Ray's daemons as well.
    """
    out = tmp_path / "run"
    command = [sys.executable, "-m", "tests.support.several_devices", "probe", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(factory.__file__).parents[1])}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as driver:
        deadline = time.monotonic() + 200
        while not (out / "started").exists() and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if group:
            os.killpg(driver.pid, number)
        else:
            driver.send_signal(number)
        _, said = driver.communicate(timeout=100)
    assert driver.returncode == code, said
    assert not [line for line in said.splitlines() if ".cc:" in line or "Traceback" in line], said
    if not group:
        assert 0 < torch.load(out / "checkpoint.pt", weights_only=True)["step"] < 50_000
    assert not (out / "stop").exists()
