"""Metrics of a real run as Prometheus sees them, and the environment variables of metrics and logs."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory import log_format, metrics
from factory.config.recipe import make_recipe
from factory.dataset.storage import Store
from factory.engine.machine import metrics_port
from factory.errors import TransientError, UserError
from factory.generation import run_metrics
from factory.generation.run import RunSummary, generate

PROGRAM = [sys.executable, "-c", "from factory.cli.main import run; run()"]


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scraped(port: int) -> dict[str, dict[str, float]]:
    """Name -> interesting labels -> value, of the series of this program."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    found: dict[str, dict[str, float]] = {}
    for name, labels, value in re.findall(r"^(ray_factory_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        own = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        key = ",".join(own[label] for label in ("result", "reason", "stage", "state") if label in own)
        series = found.setdefault(name, {})
        series[key] = series.get(key, 0.0) + float(value)
    return found


class Scraper:
    """Scrapes until stopped, and keeps the last value of each series."""

    def __init__(self, port: int) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self._port, self._stop = port, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Scraper":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            try:
                for name, series in scraped(self._port).items():
                    self.found.setdefault(name, {}).update(series)
            except OSError:
                continue


@pytest.fixture
def run(
    port: int, tiny_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RunSummary, Scraper]]:
    """A run whose series are scraped; Ray collects them every second instead of every ten."""
    monkeypatch.setenv("FACTORY_METRICS_PORT", str(port))
    monkeypatch.setenv("FACTORY_METRICS_LINGER", "3")
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    monkeypatch.setattr(run_metrics, "INTERVAL", 0.5)
    recipe = make_recipe({**tiny_data, "n": 160, "engine": {"workers": 1}})
    with Scraper(port) as scraper:
        yield generate(recipe, Store(str(tmp_path / "set"))), scraper


def test_metrics_of_a_run_are_exported_and_agree_with_its_receipts(run: tuple[RunSummary, Scraper]) -> None:
    summary, scraper = run
    found = scraper.found
    known = {name for metric in metrics.METRICS for name in metric.exported_names()}
    assert set(found) <= known | {f"{metrics.PREFIX}{metrics.COMMIT_SECONDS.name}_created"}
    assert found["ray_factory_shards_total"] == {"committed": summary.totals.shards}
    assert found["ray_factory_shards_left"] == {"": 0}
    assert found["ray_factory_lease_epoch"] == {"": 1}
    assert set(found["ray_factory_workers"]) == {"ready", "pending"}
    for name in ("ray_factory_last_commit_timestamp_seconds", "ray_factory_last_success_timestamp_seconds"):
        assert abs(found[name][""] - time.time()) < 60
    # The counters of a worker are up to a report interval behind when it ends.
    assert 0 < found["ray_factory_samples_total"]["accepted"] <= summary.totals.accepted
    for reason, count in found["ray_factory_rejections_total"].items():
        assert count <= summary.totals.rejected[reason]
    assert {"generate", "ground", "filter", "encode"} <= set(found["ray_factory_stage_seconds_total"])
    assert 0 < found["ray_factory_committed_bytes_total"][""] <= summary.totals.bytes * 1.5
    assert 0 < found["ray_factory_commit_seconds_count"][""] <= summary.totals.shards


def test_metrics_outside_a_cluster_are_dropped_and_do_not_import_ray() -> None:
    program = (
        "import sys; from factory import metrics; metrics.SAMPLES.add(1, 'x', result='accepted'); print('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_names_are_valid_and_unique() -> None:
    names = [metric.name for metric in metrics.METRICS]
    assert len(set(names)) == len(names)
    for metric in metrics.METRICS:
        assert re.fullmatch(r"factory_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")


@pytest.mark.parametrize("value", ["soon", "-1", "601", "nan"])
def test_invalid_linger_is_reported_before_any_work(value: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [*PROGRAM, "generate", "--classes", "dog", "--n", "1", "--out", str(tmp_path / "set")],
        env={**os.environ, "FACTORY_METRICS_LINGER": value},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("FACTORY_METRICS_LINGER must be a number of seconds from 0 to 600")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("value", ["0", "70000", "http", "-1"])
def test_invalid_port_is_reported(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_METRICS_PORT", value)
    with pytest.raises(UserError, match="must be a port from 1 to 65535"):
        metrics_port()


def test_used_port_is_a_temporary_failure(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_METRICS_PORT", str(port))
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(TransientError, match="cannot be used"):
            metrics_port()
    assert metrics_port() == port
