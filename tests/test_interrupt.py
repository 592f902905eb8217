"""A run that is told to stop: what is under way is committed, nothing is half done, and the exit code says why."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

PROGRAM = [sys.executable, "-c", "from factory.cli.main import run; run()"]


@pytest.mark.parametrize("group", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sigterm_commits_what_is_under_way_and_the_same_command_continues(
    tiny_model: Path, tmp_path: Path, group: bool
) -> None:
    """Kubernetes signals the driver alone, Slurm every process of the step, Ray's daemons included."""
    data = {
        "classes": "voc",
        "n": 400,
        "shard_size": 2,
        "batch": 2,
        "generator": {"model": str(tiny_model), "steps": 4, "solver": "ddim"},
        "masks": {"timesteps": [300]},
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
        _, said = driver.communicate(timeout=60)
    assert driver.returncode == 143, said
    assert "Interrupted; what is written is kept" in said
    assert not [line for line in said.splitlines() if ".cc:" in line or "Traceback" in line], "no C++ text"
    assert json.loads((out / "progress.json").read_text())["status"] == "interrupted"
    after = {path.stem for path in out.glob("receipts/*")}
    assert after <= {path.stem for path in out.glob("train/*")}
    if not group:
        assert "stopping:" in said
        assert before < len(after) < 200, "the shard under way was committed"
        assert after == {path.stem for path in out.glob("train/*")}, "nothing was half written"
