"""The manifests of jobs/kuberay are valid for the API server, and mean what docs/deployment.md says."""

import gzip
import json
import os
import re
import shlex
import signal
import subprocess
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.kustomize import Object, render

ROOT = Path(__file__).parent.parent.parent
KUBERAY = ROOT / "jobs/kuberay"
OVERLAYS = sorted(path.parent for path in KUBERAY.glob("overlays/*/kustomization.yaml"))
POD_MONITOR = {
    # The fields that are used here; the CRD of the Prometheus operator has many more.
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PodMonitor"},
        "metadata": {"type": "object"},
        "spec": {
            "required": ["selector", "podMetricsEndpoints"],
            "additionalProperties": False,
            "properties": {
                "selector": {"properties": {"matchLabels": {"type": "object"}}, "additionalProperties": False},
                "podTargetLabels": {"type": "array", "items": {"type": "string"}},
                "podMetricsEndpoints": {
                    "type": "array",
                    "items": {
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string"},
                            "interval": {"pattern": "^[0-9]+s$"},
                            "scrapeTimeout": {"pattern": "^[0-9]+s$"},
                        },
                    },
                },
            },
        },
    },
    "additionalProperties": False,
}


@cache
def schemas() -> dict[str, Any]:
    bundle = json.loads(gzip.decompress((Path(__file__).parent / "schemas.json.gz").read_bytes()))
    return {**bundle["schemas"], "monitoring.coreos.com/v1 PodMonitor": POD_MONITOR}


def problems(entry: Object) -> list[str]:
    schema = schemas()[f"{entry['apiVersion']} {entry['kind']}"]
    errors = jsonschema.Draft202012Validator(schema).iter_errors(entry)
    return [f"{entry['kind']} {'.'.join(map(str, error.path))}: {error.message[:200]}" for error in errors]


def find(objects: list[Object], kind: str) -> Object:
    (found,) = [entry for entry in objects if entry["kind"] == kind]
    return found


@pytest.fixture
def base() -> list[Object]:
    return render(KUBERAY / "base")


@pytest.mark.parametrize("folder", [KUBERAY / "base", *OVERLAYS], ids=lambda path: path.name)
def test_every_object_is_valid_and_has_no_unknown_field(folder: Path) -> None:
    objects = render(folder)
    assert [problem for entry in objects for problem in problems(entry)] == []
    names = [(entry["kind"], entry["metadata"]["name"]) for entry in objects]
    assert len(set(names)) == len(names)


def test_validation_finds_misspelt_and_misplaced_fields(base: list[Object]) -> None:
    job, cron = find(base, "RayJob"), find(base, "CronJob")
    job["spec"]["backofLimit"] = 3
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["command"] = "factory"
    cron["spec"]["startDeadlineSeconds"] = 60
    assert len(problems(job)) == 2
    assert len(problems(cron)) == 1


def test_cron_job_names_the_night_and_never_runs_twice_at_once(base: list[Object]) -> None:
    spec = find(base, "CronJob")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    config = yaml.safe_load(find_config(base)["nightly.yaml"])
    container = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    zones = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert spec["timeZone"] == config["timezone"] == zones["TIME_ZONE"]
    assert str(config["keep"]["nights"]) == container["command"][-1]


def find_config(objects: list[Object]) -> dict[str, str]:
    (found,) = [entry for entry in objects if entry["metadata"]["name"] == "factory-nightly" and "data" in entry]
    return dict(found["data"])


def test_scheduler_may_only_touch_ray_jobs(base: list[Object]) -> None:
    (rule,) = find(base, "Role")["rules"]
    assert rule == {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "list", "create", "delete"]}
    account = find(base, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["serviceAccountName"]
    assert find(base, "RoleBinding")["subjects"] == [{"kind": "ServiceAccount", "name": account}]


def test_template_starts_nothing_and_its_copies_end(base: list[Object]) -> None:
    spec = find(base, "RayJob")["spec"]
    assert spec["suspend"]
    assert spec["shutdownAfterJobFinishes"], "KubeRay accepts a suspended RayJob only with this"
    assert spec["backoffLimit"] > 0
    budget = yaml.safe_load(find_config(base)["nightly.yaml"])["budget"]["hours"]
    assert spec["activeDeadlineSeconds"] > 3600 * budget + spec["preRunningDeadlineSeconds"]
    assert spec["activeDeadlineSeconds"] < 86400, "a night ends before the next one begins"
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray") == pinned("ray")
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["authOptions"] == {"mode": "token"}


def pinned(name: str) -> str:
    found = re.search(rf"^{name}==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (2, 2), (4, 0), (6, 0), (75, 75), (143, 143)])
def test_entrypoint_keeps_the_exit_codes_that_need_a_retry_or_a_person(
    code: int, expected: int, base: list[Object], tmp_path: Path
) -> None:
    night = start_night(base, tmp_path, f"echo $*\nexit {code}")
    assert night.communicate()[0] == "nightly /etc/factory/nightly.yaml --json --date 2026-11-25\n"
    assert night.returncode == expected
    assert not (tmp_path / "factory-nightly.pid").exists()


def start_night(objects: list[Object], folder: Path, driver: str) -> "subprocess.Popen[str]":
    """Start the entrypoint as Ray does, with a shell script in place of factory."""
    (folder / "factory").write_text(f"#!/bin/sh\n{driver}\n")
    (folder / "factory").chmod(0o755)
    (folder / "nightly.sh").write_text(find_config(objects)["nightly.sh"])
    entrypoint = find(objects, "RayJob")["spec"]["entrypoint"].replace("$NIGHT", "2026-11-25")
    # `ray job submit` joins the words of the entrypoint, and its agent runs them in a shell.
    joined = shlex.join(shlex.split(entrypoint.replace("/etc/factory", str(folder))))
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "TMPDIR": str(folder)}
    pipe = subprocess.PIPE
    return subprocess.Popen(joined, shell=True, env=environment, stdout=pipe, text=True, start_new_session=True)


# A driver that stops gracefully, and says how often it was asked to.
GRACEFUL = """
trap 'echo asked; end=1' TERM
echo started
until [ "$end" ]; do sleep 0.05; done
sleep 1
exit 143
"""


@pytest.mark.parametrize("stopped_before", [False, True])
def test_end_of_the_head_stops_the_driver_gracefully_and_once(
    stopped_before: bool, base: list[Object], tmp_path: Path
) -> None:
    head = find(base, "RayJob")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    hook = [part.replace("/etc/factory", str(tmp_path)) for part in head["lifecycle"]["preStop"]["exec"]["command"]]
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    with start_night(base, tmp_path, GRACEFUL) as night:
        assert night.stdout is not None
        assert night.stdout.readline() == "started\n"
        entrypoint = int((tmp_path / "factory-nightly.pid").read_text())
        if stopped_before:  # deleting a RayJob does this, too
            os.kill(entrypoint, signal.SIGSTOP)  # on a busy machine, it handles both signals later
            os.killpg(night.pid, signal.SIGTERM)
        said = night.stdout.readline() if stopped_before else ""
        with subprocess.Popen(hook, env=environment) as stopping:
            if stopped_before:
                time.sleep(0.5)
                os.kill(entrypoint, signal.SIGCONT)
        assert stopping.returncode == 0
        assert said + night.stdout.read() == "asked\n"
    assert night.returncode in (143, -signal.SIGTERM), "KubeRay tries again"
    assert subprocess.run(hook, env=environment).returncode == 0, "without a driver, the pod ends at once"


def test_head_takes_no_work_and_stops_within_its_grace_period(base: list[Object]) -> None:
    head = find(base, "RayJob")["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    pod = head["template"]["spec"]
    assert "nvidia.com/gpu" not in pod["containers"][0]["resources"]["limits"]
    variables = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
    grace = yaml.safe_load(find_config(base)["nightly.yaml"])["recipe"]["engine"]["grace"]
    assert grace + 10 <= int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize(
    "folder", [path for path in OVERLAYS if path.name in ("gke", "eks")], ids=lambda path: path.name
)
def test_workers_are_spot_nodes_with_a_gpu_and_the_head_is_not(folder: Path) -> None:
    cluster = find(render(folder), "RayJob")["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    pod = group["template"]["spec"]
    assert group["minReplicas"] == 0, "no GPU is requested before the checks have passed"
    assert "spot" in json.dumps(pod["nodeSelector"])
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["terminationGracePeriodSeconds"] > 0
    on_demand = {"karpenter.sh/capacity-type": "on-demand"}
    submitter = find(render(folder), "RayJob")["spec"]["submitterPodTemplate"]
    for lasting in (cluster["headGroupSpec"]["template"]["spec"], submitter["spec"]):
        assert lasting.get("nodeSelector") == on_demand or "DoesNotExist" in json.dumps(lasting["affinity"])


def test_object_store_fits_into_the_shared_memory(base: list[Object]) -> None:
    cluster = find(base, "RayJob")["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        shared = re.fullmatch(r"(\d+)Gi", volumes["shm"]["emptyDir"]["sizeLimit"])
        assert shared is not None
        assert int(group["rayStartParams"]["object-store-memory"]) < int(shared[1]) * 2**30


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: path.name)
def test_pods_are_unprivileged_and_what_they_mount_exists(folder: Path) -> None:
    objects = render(folder)
    existing = {(entry["kind"], entry["metadata"]["name"]) for entry in objects}
    pods = list(pod_specs(objects))
    assert pods
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert ("ServiceAccount", pod["serviceAccountName"]) in existing
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["image"] != "factory", "the overlay names the image"
            assert container["resources"]["limits"]["memory"]
        for volume in pod.get("volumes", []):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in existing
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in existing
        mounts = [mount for container in pod["containers"] for mount in container.get("volumeMounts", [])]
        assert {mount["name"] for mount in mounts} == {volume["name"] for volume in pod.get("volumes", [])}


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: path.name)
def test_containers_that_kuberay_adds_are_unprivileged(folder: Path) -> None:
    (job,) = [entry for entry in render(folder) if entry["kind"] in ("RayJob", "RayCronJob")]
    spec = job["spec"].get("jobTemplate", job["spec"])
    autoscaler = spec["rayClusterSpec"]["autoscalerOptions"]["securityContext"]
    assert autoscaler == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    (submitter,) = spec["submitterPodTemplate"]["spec"]["containers"]  # `pod_specs` checks what it may do
    assert "command" not in submitter, "KubeRay sets it"


def pod_specs(part: Any) -> Any:
    if isinstance(part, dict):
        if "containers" in part:
            yield part
        part = list(part.values())
    if isinstance(part, list):
        for entry in part:
            yield from pod_specs(entry)


def test_pod_monitor_scrapes_a_port_that_every_pod_has(base: list[Object]) -> None:
    (monitor,) = yaml.safe_load_all((KUBERAY / "components/monitoring/podmonitor.yaml").read_text())
    port = monitor["spec"]["podMetricsEndpoints"][0]["port"]
    cluster = find(base, "RayJob")["spec"]["rayClusterSpec"]
    for pod in pod_specs(cluster):
        assert {"name": port, "containerPort": 8080} in pod["containers"][0]["ports"]


def test_ray_cron_job_runs_what_the_template_describes(base: list[Object]) -> None:
    (alternative,) = yaml.safe_load_all((KUBERAY / "overlays/raycronjob/raycronjob.yaml").read_text())
    template = find(base, "RayJob")["spec"]
    different = {"suspend", "entrypoint"}
    job = alternative["spec"]["jobTemplate"]
    assert {name: value for name, value in job.items() if name not in different} == {
        name: value for name, value in template.items() if name not in different
    }
    cron = find(base, "CronJob")["spec"]
    assert (alternative["spec"]["schedule"], alternative["spec"]["timeZone"]) == (cron["schedule"], cron["timeZone"])
