"""The timer and the service under a systemd of their own, in namespaces of this machine: they make a night."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parent.parent.parent
UNITS = ROOT / "jobs/systemd"

# The first process of a new PID namespace becomes systemd. Everything that it writes is on memory or below `folder`.
BOOT = """
set -e
for mounted in /run /tmp /var/lib /var/cache; do mount -t tmpfs tmpfs $mounted; done
mkdir -p /run/systemd/system /run/factory /var/lib/factory
cp -r units/. /run/systemd/system/
cp start.sh nightly.yaml /run/factory/
mount --bind state /var/lib/factory
exec env container=test /lib/systemd/systemd --system --unit=night.target --show-status=0 --log-target=console
"""
# The first start fails temporarily: the unit has to start it again.
START = """#!/bin/sh
echo start >> /var/lib/factory/starts
test "$(wc -l < /var/lib/factory/starts)" -gt 1 || exit 75
exec {program} nightly /run/factory/nightly.yaml --date 2026-11-25
"""
FILES = {
    "night.target": "[Unit]\nWants=factory-nightly.timer\nDefaultDependencies=no\n",
    # Starts at once instead of at 22:00.
    "factory-nightly.timer.d/test.conf": "[Unit]\nDefaultDependencies=no\n[Timer]\nOnCalendar=\nOnActiveSec=1\n",
    "factory-nightly.service.d/test.conf": """
[Unit]
DefaultDependencies=no
[Service]
User={user}
ProtectHome=no
RestartSec=1
ExecStart=
ExecStart=/bin/sh /run/factory/start.sh
ExecStopPost=/bin/sh -c 'echo $SERVICE_RESULT $EXIT_STATUS >> /var/lib/factory/ends'
Environment=PYTHONPATH={root} OMP_NUM_THREADS=1 FACTORY_METRICS_LINGER=0
StandardOutput=append:/var/lib/factory/output
StandardError=append:/var/lib/factory/errors
""",
}


@contextmanager
def booted(folder: Path) -> Iterator[None]:
    """systemd in namespaces for the duration of the `with`; its messages go to systemd.log."""
    namespaces = ["--fork", "--pid", "--mount-proc", "--mount", "--cgroup", "--uts", "--ipc", "--kill-child"]
    with open(folder / "systemd.log", "wb") as log:
        machine = subprocess.Popen(["unshare", *namespaces, "bash", "-c", BOOT], cwd=folder, stdout=log, stderr=log)
        try:
            yield
        finally:
            machine.kill()
            machine.wait()


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_timer_starts_the_service_which_makes_a_night(tmp_path: Path) -> None:
    values = {"root": ROOT, "user": os.stat(ROOT).st_uid, "program": Path(sys.executable).parent / "factory"}
    for name, text in FILES.items():
        path = tmp_path / "units" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(**values))
    for name in ("factory-nightly.service", "factory-nightly.timer"):
        (tmp_path / "units" / name).write_text((UNITS / name).read_text())
    (tmp_path / "start.sh").write_text(START.format(**values))
    (tmp_path / "state").mkdir()
    config = yaml.safe_load((UNITS / "nightly.yaml").read_text())
    config["recipe"] = {"classes": ["dog"], "n": 4, "shard_size": 4}
    (tmp_path / "nightly.yaml").write_text(yaml.safe_dump(config))

    state = tmp_path / "state"
    with booted(tmp_path):
        wait_until(lambda: lines_of(state / "ends")[1:], 240, f"the service did not end twice: {tmp_path}")
    assert lines_of(state / "ends") == ["exit-code 75", "success 0"], lines_of(state / "errors")[-20:]
    (night,) = state.glob("nights/2026-11-25/night.json")
    assert json.loads(night.read_text())["state"] == "complete"
