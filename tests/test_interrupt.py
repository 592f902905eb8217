"""Interrupted runs: shards in progress are committed, nothing is half written, and the exit code is right."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.support.program import PROGRAM


@pytest.mark.parametrize("group", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sigterm_commits_shards_in_progress(tiny_model: Path, tmp_path: Path, group: bool) -> None:
    """Kubernetes signals only the driver, Slurm every process of the step, including Ray's daemons."""
    data = {
        "classes": "voc",
        "n": 400,
        "shard_size": 40,  # so long that the signal, which follows the first receipt, finds the second one in progress
        "batch": 2,
        "generator": {"model": str(tiny_model), "steps": 4, "solver": "ddim", "dtype": "float32"},
        "masks": {"noise_level": 0.5},
        "filters": {"min_area": None, "max_area": None, "max_border": None, "duplicate_distance": None},
        "engine": {"workers": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    out = tmp_path / "out"
    command = [*PROGRAM, "generate", "--recipe", str(tmp_path / "recipe.yaml"), "--shards", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as driver:
        deadline = time.monotonic() + 100
        while not list(out.glob("receipts/*")) and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        before = len(list(out.glob("receipts/*")))
        if group:
            os.killpg(driver.pid, signal.SIGTERM)
        else:
            driver.send_signal(signal.SIGTERM)
        _, stderr = driver.communicate(timeout=60)
    assert driver.returncode == 143, stderr
    assert "Interrupted. Committed work is kept" in stderr
    assert not [line for line in stderr.splitlines() if ".cc:" in line or "Traceback" in line], "no C++ output"
    assert json.loads((out / "progress.json").read_text())["status"] == "interrupted"
    after = {path.stem for path in out.glob("receipts/*")}
    assert after <= {path.stem for path in out.glob("train/*")}
    if not group:
        assert "stopping:" in stderr
        assert before < len(after) < 10, "the shard in progress was committed"
        assert after == {path.stem for path in out.glob("train/*")}, "nothing was half written"


@pytest.mark.parametrize("after", ["gcs_server", "raylet"])
def test_sigterm_while_ray_starts_ends_like_any_other(tiny_model: Path, tmp_path: Path, after: str) -> None:
    """Ray installs handlers of SIGTERM while it starts, which end the process with other exit codes."""
    out = tmp_path / "out"
    command = [*PROGRAM, "generate", "--classes", "voc", "--n", "4", "--model", str(tiny_model), "--shards", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as driver:
        deadline = time.monotonic() + 100
        while driver.poll() is None and time.monotonic() < deadline:
            if any(process.name() == after for process in psutil.Process(driver.pid).children(recursive=True)):
                break
            time.sleep(0.01)
        driver.send_signal(signal.SIGTERM)
        _, stderr = driver.communicate(timeout=60)
    assert driver.returncode == 143, stderr
    assert "Interrupted. Committed work is kept" in stderr
    assert "Traceback" not in stderr


STOPPED_IN_A_FORK = """
import os, signal
sent = []

def stop():
    if not sent:
        sent.append(os.kill(os.getpid(), signal.SIGTERM))

os.register_at_fork(after_in_parent=stop)
from factory.cli.main import run
run()
"""


def test_sigterm_in_the_middle_of_a_fork_is_not_lost(tiny_model: Path, tmp_path: Path) -> None:
    """Python discards exceptions of functions that it calls at a fork; one of them releases the lock of `logging`."""
    command = [sys.executable, "-c", STOPPED_IN_A_FORK, "generate", "--classes", "voc", "--n", "4"]
    command += ["--model", str(tiny_model), "--shards", str(tmp_path / "out")]
    log = tmp_path / "log"
    with log.open("w") as stream:  # a pipe would be kept open by Ray's processes
        ended = subprocess.run(command, stderr=stream, timeout=100)
    assert ended.returncode == 143, log.read_text()
    assert "Interrupted. Committed work is kept" in log.read_text()
    assert "Exception ignored" not in log.read_text()
