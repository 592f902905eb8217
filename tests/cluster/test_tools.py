"""The files of jobs/ through the tools that they are for: promtool, kustomize, hadolint, systemd, SkyPilot, ..."""

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.kustomize import render
from tests.deploy.test_manifests import KUBERAY, OVERLAYS

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parent.parent.parent
OBSERVABILITY = ROOT / "jobs/observability"


def tool(name: str, *arguments: object, cwd: Path = ROOT) -> str:
    """The output of a tool that must succeed."""
    path = shutil.which(name)
    assert path is not None, f"{name} is not in PATH; `make test-cluster` installs it"
    done = subprocess.run([path, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_alerts_fire_when_they_should() -> None:
    tool("promtool", "check", "rules", "factory.rules.yml", cwd=OBSERVABILITY)
    tool("promtool", "check", "config", "prometheus.yml", cwd=OBSERVABILITY)
    assert "SUCCESS" in tool("promtool", "test", "rules", "factory.rules.test.yml", cwd=OBSERVABILITY)


def test_queries_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    dashboard = json.loads((OBSERVABILITY / "dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    plain = [query.replace("$__rate_interval", "1m").replace("$dataset", ".*") for query in queries]
    rules = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(plain)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(queries)} rules found" in tool("promtool", "check", "rules", tmp_path / "rules.yml")


@pytest.mark.parametrize("folder", [KUBERAY / "base", *OVERLAYS], ids=lambda path: path.name)
def test_kustomize_renders_what_the_fast_tests_check(folder: Path) -> None:
    def sorted_by_name(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(objects, key=lambda entry: (entry["kind"], entry["metadata"]["name"]))

    rendered = list(yaml.safe_load_all(tool("kubectl", "kustomize", folder)))
    assert sorted_by_name(rendered) == sorted_by_name(copy.deepcopy(render(folder)))


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: path.name)
def test_kubernetes_accepts_its_objects(folder: Path, tmp_path: Path) -> None:
    own = [entry for entry in render(folder) if not re.search(r"^(ray\.io|monitoring\.)", entry["apiVersion"])]
    assert len(own) >= 3
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump_all(own))
    tool("kubernetes-validate", "--strict", tmp_path / "objects.yaml")


def test_dockerfile_has_no_lint() -> None:
    tool("hadolint", "jobs/container/Dockerfile")


def test_scripts_have_no_lint() -> None:
    tool("shellcheck", "jobs/slurm/nightly.sbatch", "jobs/kuberay/base/nightly.sh")


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for name in ("factory-nightly.service", "factory-nightly.timer"):
        text = (ROOT / "jobs/systemd" / name).read_text()
        # The program is not installed on this machine.
        (tmp_path / name).write_text(text.replace("/opt/factory/bin/factory", sys.executable))
    assert tool("systemd-analyze", "verify", *tmp_path.iterdir()) == ""
    assert "Next elapse" in tool("systemd-analyze", "calendar", "*-*-* 22:00:00 Europe/Berlin")


def test_skypilot_accepts_the_job() -> None:
    program = "import sky; print(sky.Task.from_yaml('jobs/skypilot/nightly.yaml').name)"
    python = Path(shutil.which("moto_server") or "").parent / "python"
    assert tool(str(python), "-c", program).strip() == "factory-nightly"
