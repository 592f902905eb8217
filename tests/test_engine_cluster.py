"""The engine on an existing cluster: nodes that join later, variables of the driver, a head node that dies."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory.config.recipe import make_recipe
from factory.config.sections import EngineRecipe
from factory.engine.capacity import Capacity
from factory.engine.cluster import _check_reachable, _environment, _keep_token_in_memory, connected
from factory.engine.pool import Pool
from factory.engine.quiet import quiet_here
from factory.engine.scheduler import Scheduler
from factory.engine.state import Listener, State
from factory.engine.view import ClusterView
from factory.errors import UserError
from factory.generation.hardware import for_hardware
from tests.support.jobs import SleepingJob


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head node with one core and a token, without the driver's variables."""
    _keep_token_in_memory()
    from ray.cluster_utils import Cluster

    ray_cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False}
    )
    try:
        yield ray_cluster
    finally:
        ray_cluster.shutdown()


def test_node_that_joins_late_is_used_and_has_the_drivers_variables(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere/config")
    engine, seen = EngineRecipe(address=cluster.address), list[State]()
    joined = []

    def tick(state: State) -> None:
        seen.append(state)
        if state.shards_done >= 1 and not joined:
            with monkeypatch.context() as elsewhere:  # the processes of another machine inherit nothing from the driver
                elsewhere.delenv("AWS_ENDPOINT_URL")
                elsewhere.delenv("AWS_CONFIG_FILE")
                joined.append(cluster.add_node(num_cpus=1, num_gpus=1, wait=False))

    with connected(engine, 1), ClusterView(Capacity(engine, 1)) as view:
        pool = Pool(
            SleepingJob(str(tmp_path), seconds=0.4, noting=("AWS_ENDPOINT_URL", "AWS_CONFIG_FILE")), view.request
        )
        try:
            state = Scheduler(pool, range(40), view, engine, Listener(tick=tick)).run()
        finally:
            pool.close()
    assert (state.shards_done, state.quarantined, state.lost) == (40, [], 0)
    on_cpu, on_gpu = (len((tmp_path / f"on-{name}").read_text()) for name in ("cpu", "cuda"))
    assert on_gpu > on_cpu, "once there was a GPU, no shard was started on a CPU"
    assert (tmp_path / "AWS_ENDPOINT_URL-cpu").read_text() == "http://127.0.0.1:1"
    assert not (tmp_path / "AWS_CONFIG_FILE-cpu").exists(), "paths that do not exist on the node are not set"
    assert (tmp_path / "MALLOC_ARENA_MAX-cpu").read_text() == "1"
    assert "no token authentication" not in caplog.text


def test_precision_of_a_new_dataset_depends_on_the_gpus_of_the_cluster(cluster: Any, tiny_model: Path) -> None:
    generator = {"model": str(tiny_model), "steps": 2}
    recipe = make_recipe({"n": 2, "classes": "voc", "generator": generator, "engine": {"address": cluster.address}})
    node = cluster.add_node(num_cpus=1, num_gpus=1)
    assert for_hardware(recipe, None).generator.dtype == "bfloat16"
    cluster.remove_node(node)


def test_driver_outside_the_cluster_raises_a_clear_error(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.services.find_node_ids", lambda: {"f" * 56})
    with (
        pytest.raises(UserError, match=r"this host is not part of the Ray cluster at .* ray://"),
        connected(EngineRecipe(address=cluster.address), 1),
    ):
        pass


WITHOUT_TOKEN = """
import logging, sys
logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
from ray.cluster_utils import Cluster
from factory.engine.cluster import connected
from factory.config.sections import EngineRecipe
there = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
try:
    with connected(EngineRecipe(address=there.address), 1):
        print("joined", there.address)
finally:
    there.shutdown()
"""


def test_who_joins_a_cluster_without_a_token_is_warned() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    environment["RAY_AUTH_MODE"] = "disabled"
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_TOKEN], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    address = ran.stdout.split()[-1]
    message = f"factory.engine.cluster: The Ray cluster at {address} has no token authentication: anyone who can reach"
    assert message in ran.stderr


AUTOSCALER_V2 = """
from ray.cluster_utils import Cluster
from factory.config.sections import EngineRecipe
from factory.engine.capacity import Capacity, ResourceRequest
from factory.engine.cluster import connected
system = {"enable_autoscaler_v2": True}
head = {"num_cpus": 2, "include_dashboard": False, "_system_config": system}
there = Cluster(initialize_head=True, head_node_args=head)
try:
    engine = EngineRecipe(address=there.address)
    with connected(engine, 1):
        print("workers", Capacity(engine, 1).current()[1])
finally:
    there.shutdown()
"""


def test_autoscaler_of_kuberay_is_asked_for_more_workers_than_fit() -> None:
    """KubeRay names the node groups, and the second autoscaler of Ray writes no status."""
    environment = {**os.environ, "RAY_NODE_TYPE_NAME": "headgroup"}  # as in the pods of KubeRay
    command = [sys.executable, "-c", AUTOSCALER_V2]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.splitlines()[-1] == "workers 4"


HEADLESS = """
import faulthandler, sys
from pathlib import Path

faulthandler.dump_traceback_later(120, exit=True)  # shows where it hangs

def a_worker_is_busy():
    return any(Path(sys.argv[2]).glob("tried-*"))  # Ray may start the two shards of a worker in any order

from factory.cli import main
from factory.engine import cluster, health
from factory.engine.capacity import Capacity
from factory.engine.pool import Pool
from factory.engine.quiet import quiet_here
from factory.engine.scheduler import Scheduler
from factory.engine.state import Listener
from factory.engine.view import ClusterView
from factory.config.sections import EngineRecipe
from tests.support.jobs import SleepingJob

health.LONGEST_SILENCE = 3.0
cluster._keep_token_in_memory()
from ray.cluster_utils import Cluster
ray_cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
killed = []

def tick(state):
    if not killed and a_worker_is_busy():
        killed.append(1)
        ray_cluster.head_node.kill_gcs_server()

@main.app.command()
def probe(folder: str) -> None:
    engine = EngineRecipe(address=ray_cluster.address)
    with cluster.connected(engine, 1), ClusterView(Capacity(engine, 1)) as view:
        pool = Pool(SleepingJob(folder, hanging=frozenset(range(9))), view.request)
        try:
            Scheduler(pool, range(9), view, engine, Listener(tick=tick)).run()
        finally:
            pool.close()

main.run()
"""


def test_death_of_the_head_node_ends_the_run_with_a_clear_error(tmp_path: Path) -> None:
    program = [sys.executable, "-c", HEADLESS, "probe", str(tmp_path)]
    for _ in range(3):  # on a busy machine, Ray sometimes cannot start a cluster
        result = subprocess.run(program, capture_output=True, text=True, timeout=150, env=os.environ)
        if "The current node timed out during startup" not in result.stderr:
            break
    assert result.returncode == 75, result.stderr
    assert "the head node of the Ray cluster at" in result.stderr
    assert "Committed shards are kept" in result.stderr
    assert "Traceback" not in result.stderr
    assert ".cc:" not in result.stderr, "no C++ output"


def test_only_the_thread_that_starts_ray_is_muted(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet_here():
        print("message of Ray")
        worker = threading.Thread(target=print, args=("of another thread",))
        worker.start()
        worker.join()
        kept = sys.stdout
    print("after")
    kept.write("by a handler that kept the redirection\n")
    assert capsys.readouterr().out.splitlines() == [
        "of another thread",
        "after",
        "by a handler that kept the redirection",
    ]


OTHER_CLUSTER_NEXT = """
import os
from factory.engine.cluster import connected
from factory.config.sections import EngineRecipe

before = dict(os.environ)
for _ in range(2):  # the second cluster has another token, although Ray caches the first
    with connected(EngineRecipe(workers=1), 1):
        import ray
        print(len(os.environ["RAY_AUTH_TOKEN"]), ray.get(ray.remote(lambda: 3).remote()))
    changed = {name for name in {*before, *os.environ} if before.get(name) != os.environ.get(name)}
    assert changed <= {"RAY_CLIENT_MODE", "PYTHONBREAKPOINT"}, changed  # Ray sets these itself
"""


def test_environment_of_a_program_is_as_before_after_a_local_run() -> None:
    """The token of the local cluster was left there, and later connections to other clusters were refused."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    program = [sys.executable, "-c", OTHER_CLUSTER_NEXT]
    result = subprocess.run(program, capture_output=True, text=True, timeout=150, env=environment)
    assert result.stdout == "64 3\n64 3\n", result.stderr


def test_processes_of_ray_keep_their_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    """With PYTHONOPTIMIZE=2, Ray's dashboard agent cannot be imported, and no local cluster started."""
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    with _environment():
        assert "PYTHONOPTIMIZE" not in os.environ
    assert os.environ["PYTHONOPTIMIZE"] == "2"


def test_addresses_of_ipv6_are_reachable() -> None:
    """The brackets were taken for a part of the host name."""
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server:
        for address in ("[::1]:{}", "ray://[::1]:{}"):
            _check_reachable(address.format(server.getsockname()[1]))


LIBRARY_USER = """
import os, ray, sys
import psutil
from factory.engine.cluster import connected
from factory.config.sections import EngineRecipe

with connected(EngineRecipe(workers=1), 1):
    print("own output")
    assert ray.get(ray.remote(lambda: 3).remote()) == 3
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        services = {"dashboard.py", "monitor.py"} & {os.path.basename(part) for part in process.cmdline()}
        assert not services, f"{services} delay the start"
        for connection in process.net_connections("inet"):
            if connection.status == "LISTEN":
                print("listens", connection.laddr.ip.removeprefix("::ffff:"))
    with connected(EngineRecipe(workers=1), 1):  # already connected
        assert ray.get(ray.remote(lambda: 4).remote()) == 4
    assert ray.is_initialized()
print("after")
"""


def test_library_use_keeps_stdout_and_starts_only_what_it_needs_on_loopback(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * (87 - len(str(tmp_path))) if len(str(tmp_path)) < 87 else "x")
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    result = subprocess.run(
        [sys.executable, "-c", LIBRARY_USER],
        capture_output=True,
        text=True,
        timeout=100,
        env={**environment, "TMPDIR": str(folder), "HOME": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("own output", "after")
    assert set(lines[1:-1]) == {"listens 127.0.0.1"}
    assert not (tmp_path / ".ray").exists(), "no token was written to the home folder"
