"""The script of the CronJob against an API server that keeps RayJobs as Kubernetes does."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.deploy.test_manifests import KUBERAY, find, problems, render

SCRIPT = KUBERAY / "base/create_rayjob.py"
Result = subprocess.CompletedProcess[str]
URL = "/apis/ray.io/v1/namespaces/factory/rayjobs"


class Server(ThreadingHTTPServer):
    """RayJobs by name; `down` answers 503."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, dict[str, Any]] = {}
        self.down = False


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.removeprefix(URL).removeprefix("/")
        if name.startswith("?labelSelector=factory/night"):
            labelled = [job for job in self.server.objects.values() if "factory/night" in job["metadata"]["labels"]]
            self._answer(200, {"items": labelled})
        elif name in self.server.objects:
            self._answer(200, self.server.objects[name])
        else:
            self._answer(404, {"message": f"{name} not found"})

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = job["metadata"]["name"]
        if name in self.server.objects:
            self._answer(409, {"reason": "AlreadyExists"})
            return
        found = problems(job)
        if found:
            self._answer(422, {"message": found[0]})
            return
        self.server.objects[name] = job | {"status": {"jobDeploymentStatus": "Initializing"}}
        self._answer(201, job)

    def do_DELETE(self) -> None:
        self._answer(200, self.server.objects.pop(self.path.rpartition("/")[2]))

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        if self.server.down:
            status, body = 503, {"message": "down"}
        if self.headers["Authorization"] != "Bearer secret":
            status, body = 403, {"message": "forbidden"}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        template = find(render(KUBERAY / "overlays/gke"), "RayJob")
        server.objects["factory-template"] = template
        yield server
        server.shutdown()


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("create_rayjob", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(server: Server, account: Path, job: str, token: str = "secret", **changes: str) -> Result:
    (account / "token").write_text(token)
    variables = {"JOB_NAME": job, "NAMESPACE": "factory", "TIME_ZONE": "Europe/Berlin", "SERVICE_ACCOUNT": str(account)}
    command = [sys.executable, str(SCRIPT), "--server", f"http://127.0.0.1:{server.server_port}", "--keep", "2"]
    return subprocess.run(command, env={**os.environ, **variables, **changes}, capture_output=True, text=True)


def test_night_is_created_once(server: Server, tmp_path: Path) -> None:
    first, second = (run(server, tmp_path, "factory-nightly-29927340") for _ in range(2))  # 2026-11-25 21:00 UTC
    assert (first.returncode, first.stdout) == (0, "created factory-2026-11-25\n")
    assert (second.returncode, second.stdout) == (0, "factory-2026-11-25 exists: this night has been started\n")
    job = server.objects["factory-2026-11-25"]
    assert job["spec"]["suspend"] is False
    assert "--date 2026-11-25" in job["spec"]["entrypoint"]
    assert {key: value for key, value in job["spec"].items() if key not in ("suspend", "entrypoint")} == {
        key: value
        for key, value in server.objects["factory-template"]["spec"].items()
        if key not in ("suspend", "entrypoint")
    }
    assert server.objects["factory-template"]["spec"]["suspend"] is True


def test_finished_nights_beyond_the_kept_ones_are_deleted(server: Server, tmp_path: Path) -> None:
    for day, status in ((20, "Complete"), (21, "Running"), (22, "Failed"), (23, "Complete"), (24, "Complete")):
        assert run(server, tmp_path, f"factory-nightly-2026-11-{day}").returncode == 0
        server.objects[f"factory-2026-11-{day}"]["status"]["jobDeploymentStatus"] = status
    assert run(server, tmp_path, "factory-nightly-2026-11-25").returncode == 0
    kept = {"factory-template", "factory-2026-11-21", "factory-2026-11-24", "factory-2026-11-25"}
    assert set(server.objects) == kept, "a running night is kept, however old it is"


def test_night_that_kuberay_has_not_seen_is_kept_and_a_rejected_one_is_not(script: ModuleType) -> None:
    states = {
        22: {"jobDeploymentStatus": "ValidationFailed"},
        23: None,
        24: {},
        25: {"jobDeploymentStatus": "Complete"},
    }
    jobs = [
        {"metadata": {"name": f"night-{day}", "labels": {script.NIGHT: f"2026-11-{day}"}}}
        | ({} if status is None else {"status": status})
        for day, status in states.items()
    ]
    assert script.outdated(jobs, 1) == ["night-22"]


@pytest.mark.parametrize(
    ("job", "token", "expected"),
    [
        ("factory-nightly", "secret", "names no night"),
        ("factory-nightly-2026-13-01", "secret", "cannot create the RayJob"),
        ("factory-nightly-29927340", "wrong", "the API server refused with 403"),
    ],
)
def test_errors_that_a_retry_does_not_help_exit_with_two(
    server: Server, tmp_path: Path, job: str, token: str, expected: str
) -> None:
    result = run(server, tmp_path, job, token)
    assert result.returncode == 2
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("changes", [{"SERVICE_ACCOUNT": "/nowhere"}, {"TIME_ZONE": "Mars/Base"}])
def test_a_wrong_environment_exits_with_two(server: Server, tmp_path: Path, changes: dict[str, str]) -> None:
    result = run(server, tmp_path, "factory-nightly-29927340", **changes)
    assert (result.returncode, result.stderr.startswith("cannot create the RayJob: ")) == (2, True), result.stderr


def test_missing_template_exits_with_two_and_an_outage_with_75(server: Server, tmp_path: Path) -> None:
    server.down = True
    assert run(server, tmp_path, "factory-nightly-29927340").returncode == 75
    server.down = False
    del server.objects["factory-template"]
    result = run(server, tmp_path, "factory-nightly-29927340")
    assert (result.returncode, "factory-template not found" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("minutes", "zone", "night"),
    [
        (29927340, "Europe/Berlin", "2026-11-25"),  # 21:00 UTC, 22:00 in Berlin
        (29927460, "Europe/Berlin", "2026-11-26"),  # 23:00 UTC, midnight in Berlin
        (29927460, "America/Los_Angeles", "2026-11-25"),
    ],
)
def test_night_is_the_scheduled_date_in_the_time_zone(script: ModuleType, minutes: int, zone: str, night: str) -> None:
    assert script.night_of(f"factory-nightly-{minutes}", ZoneInfo(zone)) == night
