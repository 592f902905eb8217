"""Short chaos tests: killed workers, drivers and nodes do not change a byte of the finished dataset."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml

from factory.config.recipe import load_recipe, make_recipe
from factory.dataset.storage import Store
from factory.generation.run import prepare
from tests.chaos import disturbed, hashes, launch, recipe, workers_of
from tests.support.datasets import make_dataset
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def recipe_file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kills") / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(tiny_model, 24)))
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of the dataset made in this process, without the engine."""
    out = tmp_path_factory.mktemp("kills") / "undisturbed"
    make_dataset(prepare(make_recipe(load_recipe(recipe_file)), Store(str(out))), out)
    return hashes(out)


@pytest.mark.parametrize("kind", ["worker", pytest.param("driver", marks=pytest.mark.slow)])
def test_killed_and_resumed_run_yields_the_same_bytes(
    kind: str, recipe_file: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    kills = disturbed(recipe_file, tmp_path / "out", 2, kind, random.Random(kind))
    assert len(kills) >= 1
    assert hashes(tmp_path / "out") == undisturbed
    assert len(list((tmp_path / "out" / "receipts").iterdir())) == 6


def test_ctrl_c_stops_cleanly_and_keeps_finished_shards(
    recipe_file: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    run = launch(recipe_file, tmp_path / "out", 1)
    while not list((tmp_path / "out").glob("receipts/*.json")) and run.poll() is None:
        time.sleep(0.05)
    workers = workers_of(run)
    os.kill(run.pid, signal.SIGINT)
    text, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "rerun the same command to resume" in text
    assert "Traceback" not in text
    # Ray ends the workers after the driver, when they notice that their raylet is gone.
    wait_until(lambda: not any(map(alive, workers)), 60, "workers outlive their driver", 0.05)
    kept = hashes(tmp_path / "out")
    assert kept
    assert kept.items() <= undisturbed.items()


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_full_disk_loses_nothing_and_the_run_resumes(
    recipe_file: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", disk]).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        run = launch(recipe_file, disk, 1)
        text, _ = run.communicate(timeout=120)
        assert run.returncode == 75, text
        assert "Free some space and rerun the same command" in text
        kept = hashes(disk)
        assert kept.items() <= undisturbed.items()
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        again = launch(recipe_file, disk, 1)
        text, _ = again.communicate(timeout=120)
        assert again.returncode == 0, text
        assert hashes(disk) == undisturbed
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_dead_node_loses_no_sample(
    recipe_file: Path, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster of three Ray nodes on this machine, one of which is killed during the run."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        run = launch(recipe_file, tmp_path / "out", 2, "--address", cluster.address)
        while not list((tmp_path / "out").glob("receipts/*.json")) and run.poll() is None:
            time.sleep(0.05)
        cluster.remove_node(nodes[0], allow_graceful=False)
        text, _ = run.communicate(timeout=110)
        assert run.returncode == 0, text
        assert hashes(tmp_path / "out") == undisturbed
    finally:
        cluster.shutdown()
