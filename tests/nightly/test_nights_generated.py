"""Nights that really generate: drained at a budget and continued, grown over nights, interrupted, from the command."""

import datetime
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory.config.sections import EngineRecipe
from factory.engine.cluster import connected
from factory.engine.state import Limit
from factory.nightly import preflight, steps
from factory.nightly.run import run_night
from tests.nightly.conftest import DATE, Make
from tests.support.in_process import error, output
from tests.support.program import PROGRAM, hashes


def factory(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with connected(EngineRecipe(workers=1), threads=1):
        yield


def limit_after(monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    """The budget ends after `shards` finished shards; shards in progress are collected."""
    monkeypatch.setattr(steps, "limit_of", lambda *arguments: Limit(lambda state: state.shards_done >= shards, 60.0))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_night_that_is_drained_and_continued_gives_the_same_bytes(
    make: Make, finished_set: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dataset = tmp_path / "nights/2026-11-25/dataset"
    limit_after(monkeypatch, 1)
    outcome = run_night(make(exports=["coco"]))
    assert (outcome.state, outcome.exit_code) == ("partial", 0)
    first = hashes(dataset)
    assert 0 < len(first) < len(hashes(finished_set))
    assert outcome.night is not None
    assert outcome.night.exports["coco"].shards == outcome.night.shards == len(first) // 2
    assert json.loads((tmp_path / "nights/latest.json").read_text())["state"] == "partial"
    limit_after(monkeypatch, 99)
    outcome = run_night(make(exports=["coco"]))
    assert (outcome.state, outcome.exit_code) == ("complete", 0)
    assert hashes(dataset) == hashes(finished_set)
    assert outcome.night is not None
    assert (outcome.night.runs, outcome.night.new_samples, outcome.night.exports["coco"].shards) == (2, 12, 6)
    assert outcome.night.worker_hours > 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_versions_of_every_node_are_compared(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    engine = EngineRecipe(address="auto")
    preflight.check_workers(engine, threads=1)
    monkeypatch.setattr(preflight, "check_versions", lambda found: seen.extend(found))
    seen: list[tuple[str, dict[str, str]]] = []
    preflight.check_workers(engine, threads=1)
    assert seen == [(socket.gethostname(), preflight.versions())]
    assert not caplog.messages
    monkeypatch.setattr(preflight, "_WORKER_TIMEOUT", 0.0)
    preflight.check_workers(engine, threads=1)
    assert caplog.messages == [f"Versions not checked on {socket.gethostname()}: no answer within 0 s."]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_grow_adds_to_one_dataset_over_nights(make: Make, finished_set: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"mode": "grow", "target": 12, "recipe": {"n": 5, "seed": 20261125}}
    found = []
    for day in (0, 0, 1, 2):
        outcome = run_night(make(date=DATE + datetime.timedelta(days=day), **fields))
        assert outcome.night is not None
        assert (outcome.state, outcome.night.dataset) == ("complete", "dataset")
        found.append((outcome.night.new_samples, outcome.night.samples, outcome.unchanged))
    assert found == [(6, 6, False), (6, 6, True), (6, 12, False), (6, 12, True)]
    assert not (tmp_path / "nights/2026-11-27").exists(), "the target was reached the night before"
    assert hashes(tmp_path / "nights/dataset") == hashes(finished_set)


@pytest.mark.slow
def test_command_makes_a_night_and_status_lists_it(
    make: Make, finished_set: Path, night_recipe: dict[str, Any], tmp_path: Path
) -> None:
    config = tmp_path / "config/nightly.yaml"
    config.parent.mkdir()
    data = {"root": "../nights", "recipe": night_recipe, "verify": "all", "price_per_gpu_hour": 2.1}
    config.write_text(yaml.safe_dump(data))
    command = ("nightly", config, "--date", "2026-11-25")
    result = factory(*command)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    line = json.loads(result.stdout)
    assert (line["state"], line["samples"], line["exit_code"]) == ("complete", 12, 0)
    assert "factory nightly 2026-11-25: complete. All samples of the night are generated and verified." in result.stderr
    assert hashes(tmp_path / "nights/2026-11-25/dataset") == hashes(finished_set)

    start = time.monotonic()
    result = factory(*command, "--json")
    assert time.monotonic() - start < 20, "no library is loaded"
    assert (result.returncode, result.stderr, json.loads(result.stdout)["unchanged"]) == (0, "", True)

    result = factory("status", tmp_path / "nights")
    assert result.stdout.splitlines()[1].split()[:4] == ["2026-11-25", "complete", "12", "12"]
    assert result.stdout.splitlines()[1].endswith(" 0.00")
    (night,) = json.loads(factory("status", tmp_path / "nights", "--json").stdout)["nights"]
    assert (night["date"], night["yield"]) == ("2026-11-25", line["yield"])


def test_command_reports_errors_in_the_line_and_in_its_exit_code(tmp_path: Path) -> None:
    config = tmp_path / "nightly.yaml"
    config.write_text("root: nights\nrecipe: {n: 4, generator: {model: ./none}}\n")
    result = factory("nightly", config, "--date", "2026-11-25")
    assert (result.returncode, json.loads(result.stdout)["exit_code"]) == (2, 2)
    assert "there is no model folder ./none" in result.stderr
    assert "Traceback" not in result.stderr
    result = factory("nightly", config, "--date", "2026-11-25", environment={"FACTORY_LOG_FORMAT": "json"})
    assert all(json.loads(line)["level"] for line in result.stderr.splitlines()), "messages are log records"
    assert "failed" in output("status", tmp_path / "nights")
    for date in ("today", ""):
        assert "--date must be a date" in error("nightly", config, "--date", date)
    config.write_text("rot: nights\n")
    assert "there is no key rot" in error("nightly", config)
    assert "is not a dataset" in error("status", tmp_path)


@pytest.mark.slow
def test_sigterm_leaves_an_interrupted_night_that_continues(
    finished_set: Path, night_recipe: dict[str, Any], tmp_path: Path
) -> None:
    config = tmp_path / "nightly.yaml"
    recipe = {**night_recipe, "n": 600, "seed": 20261125}
    config.write_text(yaml.safe_dump({"root": "nights", "recipe": recipe, "mode": "grow", "target": 600}))
    command = [*PROGRAM, "nightly", str(config), "--date", "2026-11-25"]
    receipts = tmp_path / "nights/dataset/receipts"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(receipts.glob("*.json")):
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert (json.loads(stdout)["state"], json.loads(stdout)["exit_code"]) == ("interrupted", 143)
    night = json.loads((tmp_path / "nights/2026-11-25/night.json").read_text())
    assert (night["state"], night["counted"]) == ("interrupted", True)
    assert night["worker_hours"] > 0
    assert not (tmp_path / "nights/latest.json").exists()
    assert not (tmp_path / "nights/dataset/lease.json").exists()
