"""Metrics of a real run as Prometheus sees them, JSON logs of its driver and workers, and the variables for both."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from factory import metrics
from factory.config.recipe import make_recipe
from factory.dataset.storage import Store
from factory.engine.interface import Done
from factory.engine.logs import _LINES_PER_WORKER, _MAX_TEXT, WorkerLogs
from factory.engine.machine import metrics_port
from factory.engine.state import State
from factory.errors import TransientError, UserError
from factory.generation.run import generate
from factory.generation.run_metrics import RunMetrics
from factory.log_format import configure
from tests.support.metrics import METRICS, exported_names
from tests.support.program import PROGRAM

LAST_PUBLISHED = "ray_factory_last_success_timestamp_seconds"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Run:
    """A finished run; `series` are the last values that were scraped: name -> labels of interest -> value."""

    out: Path
    result: dict[str, Any]
    stderr: str
    series: dict[str, dict[str, float]] = field(default_factory=dict)


def scrape(port: int, found: dict[str, dict[str, float]], run: subprocess.Popen[str]) -> None:
    """Scrape until the run has published its end, then interrupt it: it waits for nothing but this scrape."""
    while LAST_PUBLISHED not in found and run.poll() is None:
        time.sleep(0.2)
        try:
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        except OSError:
            continue
        for name, labels, value in re.findall(r"^(ray_factory_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            own = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            key = ",".join(own[label] for label in ("result", "reason", "stage", "state") if label in own)
            found.setdefault(name, {})[key] = float(value)
    run.send_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One worker, JSON logs, and metrics that Ray collects every second instead of every ten."""
    folder, port = tmp_path_factory.mktemp("monitored"), free_port()
    recipe = {
        "n": 64,
        "classes": "voc",
        "objects": {1: 0.5, 2: 0.5},
        "shard_size": 4,
        "generator": {"model": str(tiny_model), "steps": 2, "solver": "ddim", "dtype": "float32"},
        "masks": {"noise_level": 0.5},
        "filters": {"min_area": 0.3, "duplicate_distance": None},
        "engine": {"workers": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    variables = {
        "FACTORY_LOG_FORMAT": "json",
        "FACTORY_METRICS_PORT": str(port),
        "FACTORY_METRICS_LINGER": "100",
        "RAY_metrics_report_interval_ms": "1000",
    }
    found: dict[str, dict[str, float]] = {}
    command = [*PROGRAM, "generate", "--recipe", folder / "recipe.yaml", "--out", folder / "set", "--json"]
    with subprocess.Popen(command, env={**os.environ, **variables}, stdout=-1, stderr=-1, text=True) as process:
        scraper = threading.Thread(target=scrape, args=(port, found, process))
        scraper.start()
        stdout, stderr = process.communicate()
        scraper.join()
    assert process.returncode == 0, stderr
    return Run(folder / "set", json.loads(stdout), stderr, found)


def test_metrics_of_a_run_are_exported_and_agree_with_its_receipts(run: Run) -> None:
    known = {name for metric in METRICS for name in exported_names(metric)}
    assert set(run.series) <= known
    assert run.series["ray_factory_shards_total"] == {"committed": 16}
    assert run.series["ray_factory_shards_left"] == {"": 0}
    assert run.series["ray_factory_lease_epoch"] == {"": 1}
    assert set(run.series["ray_factory_workers"]) == {"ready", "pending"}
    for name in ("ray_factory_last_commit_timestamp_seconds", LAST_PUBLISHED):
        assert abs(run.series[name][""] - time.time()) < 300
    rejected = run.result["rejected"]
    samples = {"accepted": run.result["samples"], "rejected": sum(rejected.values())}
    assert run.series["ray_factory_samples_total"] == samples
    assert run.series["ray_factory_rejections_total"] == rejected != {}
    assert {"generate", "ground", "filter", "encode"} <= set(run.series["ray_factory_stage_seconds_total"])
    # A worker that is killed at the end of a run loses what it counted since the last report.
    assert run.series["ray_factory_committed_bytes_total"][""] > 0
    assert 0 < run.series["ray_factory_commit_seconds_count"][""] <= 16


def test_driver_writes_json_lines(run: Run) -> None:
    records = [json.loads(line) for line in run.stderr.splitlines()]
    assert records[-1]["progress"]["status"] == "done"
    assert {"time", "level", "logger", "message", "host", "pid"} <= set(records[-1])


def test_workers_write_json_lines_to_the_log_of_the_dataset(run: Run) -> None:
    (log,) = (run.out / "logs").iterdir()
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    committed = {line["shard"]: line for line in lines if line["message"].startswith("Committed shard")}
    assert 8 < len(committed) <= 16, "the last lines of a worker that is killed may be missing"
    assert all(line["dataset"] == str(run.out) and line["seconds"]["generate"] > 0 for line in committed.values())


def test_metrics_outside_a_cluster_are_dropped_and_do_not_import_ray() -> None:
    program = "import sys; from factory import metrics; metrics.BYTES.add(1, 'x'); print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_names_are_valid_and_unique() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"factory_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")


@pytest.mark.parametrize("value", ["soon", "-1", "601", "nan"])
def test_invalid_linger_is_reported_before_any_work(
    value: str, tiny_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACTORY_METRICS_LINGER", value)
    with pytest.raises(UserError, match="FACTORY_METRICS_LINGER must be a number of seconds from 0 to 600"):
        generate(make_recipe(tiny_data), Store(str(tmp_path / "set")))
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("value", ["0", "70000", "http", "-1"])
def test_invalid_port_is_reported(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_METRICS_PORT", value)
    with pytest.raises(UserError, match="must be a port from 1 to 65535"):
        metrics_port()


def test_used_port_is_a_temporary_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("FACTORY_METRICS_PORT", str(port))
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(TransientError, match="cannot be used"):
            metrics_port()
    assert metrics_port() == port


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FACTORY_LOG_FORMAT", "xml", "FACTORY_LOG_FORMAT must be json or text, got 'xml'."),
        ("FACTORY_LOG_LEVEL", "loud", "FACTORY_LOG_LEVEL must be one of DEBUG, INFO, WARNING, ERROR, got 'loud'."),
    ],
)
def test_unknown_format_and_level_are_rejected(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=re.escape(message)):
        configure()


def test_errors_are_json_too(tmp_path: Path) -> None:
    result = subprocess.run(
        [*PROGRAM, "status", str(tmp_path / "nothing")],
        env={**os.environ, "FACTORY_LOG_FORMAT": "json"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    (record,) = [json.loads(line) for line in result.stderr.splitlines()]
    assert (record["level"], record["logger"]) == ("error", "factory")


def test_messages_of_a_night_are_json_lines(tiny_data: dict[str, Any], tmp_path: Path) -> None:
    config = {"root": str(tmp_path / "nights"), "recipe": tiny_data}
    (tmp_path / "nightly.yaml").write_text(yaml.safe_dump(config))
    command = [*PROGRAM, "nightly", tmp_path / "nightly.yaml", "--date", "2026-11-25", "--dry-run"]
    result = subprocess.run(command, env={**os.environ, "FACTORY_LOG_FORMAT": "json"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in result.stderr.splitlines()]
    assert "would start" in records[-1]["message"]
    assert records[-1]["night"] == "2026-11-25"


def test_nothing_is_configured_without_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FACTORY_LOG_FORMAT", raising=False)
    monkeypatch.delenv("FACTORY_LOG_LEVEL", raising=False)
    configure()
    assert logging.getLogger("factory").handlers == []


def test_size_of_a_log_file_is_bounded() -> None:
    logs = WorkerLogs()
    for worker in range(300):
        logs.add({"ip": "10.0.0.1", "pid": worker, "lines": ["x" * 10_000] * (2 * _LINES_PER_WORKER)})
    text = logs.text()
    assert _MAX_TEXT / 2 < len(text) < _MAX_TEXT + 300 * 100
    assert text.count("== 10.0.0.1, process") == 256


def test_log_file_omits_the_reports_of_the_autoscaler() -> None:
    logs = WorkerLogs()
    logs.add({"ip": "10.0.0.1", "pid": "autoscaler", "lines": ["======== Autoscaler status ========"]})
    logs.add({"ip": "10.0.0.1", "pid": 7, "lines": ["loaded"]})
    assert logs.text() == "== 10.0.0.1, process 7\nloaded\n"


def test_log_file_names_the_source_of_messages_without_a_node() -> None:
    """As those about lost workers, which Ray sends to the driver itself."""
    logs = WorkerLogs()
    logs.add({"lines": ["A worker died"], "pid": "raylet", "is_err": False})
    assert logs.text() == "== messages of Ray\nA worker died\n"


def test_driver_publishes_every_sample_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are killed at the end of a run, and lose what they have not reported to Ray by then."""
    published = dict[str, float]()

    def record(metric: metrics.Metric, method: str, value: float, dataset: str, labels: dict[str, str]) -> None:
        name = " ".join((metric.name, *labels.values()))
        published[name] = value + (published.get(name, 0) if method == "inc" else 0)

    monkeypatch.setattr(metrics.Metric, "_record", record)
    held: Any = SimpleNamespace(epoch=1)
    state = State(3)
    run_metrics = RunMetrics("set", held, state)
    state.in_progress = {0: (5, {"overlap": 2}), 1: (3, {})}
    run_metrics._publish()
    state.in_progress = {1: (4, {})}  # the worker of shard 0 was lost
    run_metrics._publish()
    assert published["factory_samples_total accepted"] == 8
    state.add(Done(accepted=10, attempts=12, rejected={"overlap": 1, "blank": 1}, seconds={"generate": 2.5}))
    state.add(Done(accepted=9, attempts=14, rejected={"overlap": 5}, exhausted=1, seconds={"generate": 0.25}))
    state.in_progress = {}
    run_metrics.close(complete=False)
    assert published["factory_samples_total accepted"] == 19
    assert published["factory_samples_total rejected"] == 7
    assert published["factory_rejections_total overlap"] == 6
    assert published["factory_rejections_total blank"] == 1
    assert published["factory_exhausted_samples_total"] == 1
    assert published["factory_stage_seconds_total generate"] == 2.75


def test_an_interruption_ends_the_time_in_which_metrics_are_still_served(monkeypatch: pytest.MonkeyPatch) -> None:
    held: Any = SimpleNamespace(epoch=1)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("FACTORY_METRICS_LINGER", "60")
    monkeypatch.setattr(metrics.Metric, "_record", lambda *arguments: None)
    monkeypatch.setattr("factory.generation.run_metrics.time.sleep", interrupt)
    assert RunMetrics("set", held, State(0)).close(complete=True)
    assert not RunMetrics("set", held, State(0)).close(complete=False)
