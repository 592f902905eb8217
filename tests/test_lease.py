"""Two drivers on one dataset: the second leaves, takes over from a dead one, or by force; status knows who is dead."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from factory.cli.status import state
from factory.config.recipe import make_recipe
from factory.dataset import lease
from factory.dataset.lease import LEASE, Lease, acquire, leased, parse_lease, stale
from factory.dataset.storage import Store
from factory.errors import LeaseHeldError, TransientError
from tests.support.bucket import Bucket, Fault, serving

ELSEWHERE = Lease("abc", "node-7", 12, "other-boot/pid:[1]/5", "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00")


@pytest.fixture(params=["folder", "s3://b/set", "gs://b/set"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with serving(Bucket()) as bucket:
        for name, value in bucket.environment().items():
            monkeypatch.setenv(name, value)
        yield Store(str(tmp_path) if request.param == "folder" else request.param)


def holder(store: Store) -> str:
    found = parse_lease(store.get(LEASE))
    assert found is not None
    return found.holder


def test_the_second_driver_leaves_with_the_name_of_the_first(store: Store) -> None:
    with (
        leased(store),
        pytest.raises(LeaseHeldError, match=rf"process {os.getpid()} on .* take over with --force") as told,
        leased(store),
    ):
        pass
    assert isinstance(told.value, TransientError)
    assert store.get(LEASE) is None, "given back at the end"


def test_only_one_of_many_gets_the_lease(store: Store) -> None:
    got, start = list[str](), threading.Barrier(6)

    def take() -> None:
        start.wait()
        try:
            got.append(acquire(store).holder)
        except LeaseHeldError:
            got.append("")

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got)[:5] == [""] * 5
    assert sorted(got)[5] == holder(store)


def test_a_forced_takeover_ends_the_first_driver(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    with leased(store) as first:
        first.check()
        with leased(store, force=True):
            deadline = time.monotonic() + 5
            while not first.lost and time.monotonic() < deadline:
                time.sleep(0.02)
            with pytest.raises(LeaseHeldError, match="another driver took over"):
                first.check()
    assert store.get(LEASE) is None


def test_a_driver_elsewhere_is_alive_while_its_heart_beats(store: Store) -> None:
    """Its clock says 2026, its heartbeat moves: alive, whatever this machine's clock says."""
    store.put(LEASE, ELSEWHERE.to_json())
    beating = threading.Timer(0.3, lambda: store.put(LEASE, replace(ELSEWHERE, beat=1).to_json()))
    beating.start()
    with pytest.raises(LeaseHeldError, match="process 12 on node-7"):
        acquire(store)


def test_a_driver_elsewhere_whose_heart_stopped_is_taken_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "EXPIRES", 1.5)
    store.put(LEASE, ELSEWHERE.to_json())
    said = list[str]()
    assert acquire(store, say=said.append).holder == holder(store) != "abc"
    assert "process 12 on node-7" in said[0]


def test_a_killed_driver_of_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from factory.dataset.lease import *\n"
        "acquire(Store(sys.argv[1])); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        store = Store(str(tmp_path))
        assert stale(store) is False
        with pytest.raises(LeaseHeldError, match=f"process {driver.pid}"):
            acquire(store)
        driver.send_signal(signal.SIGKILL)
    assert stale(store) is True
    began = time.monotonic()
    acquire(store)
    assert time.monotonic() - began < 1


def test_the_heart_beats_on_after_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    with serving(Bucket()) as bucket:
        for name, value in bucket.environment().items():
            monkeypatch.setenv(name, value)
        store = Store("s3://b/set")
        with leased(store) as held:
            bucket.faults[:] = [Fault("outage", times=None, seconds=0.7), Fault("lost", "PUT", times=3)]
            time.sleep(2.0)
            bucket.faults.clear()
            held.check()
            time.sleep(0.5)
            found = parse_lease(store.get(LEASE))
            assert found is not None
            assert found.beat > 2
        assert store.get(LEASE) is None


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"holder": 1}', b"\xff"])
def test_what_is_no_lease_protects_nothing(tmp_path: Path, data: bytes) -> None:
    store = Store(str(tmp_path))
    store.put(LEASE, data)
    assert acquire(store).holder == json.loads(store.get(LEASE) or b"{}")["holder"]


def test_status_tells_a_run_that_lives_from_one_that_died(store: Store, tmp_path: Path) -> None:
    store.create("recipe.yaml", make_recipe({"n": 4}).to_yaml().encode())
    assert state(store.address)["status"] == "begun"
    store.put("progress.json", b'{"status": "running"}')
    assert state(store.address)["status"] == "stale", "nobody holds the dataset"
    with leased(store):
        assert state(store.address)["status"] == "running"
    store.put(LEASE, ELSEWHERE.to_json())
    assert state(store.address)["status"] == "stale", "its heart stopped long ago"
    now = datetime.now(UTC).isoformat()
    store.put(LEASE, replace(ELSEWHERE, updated=now).to_json())
    assert state(store.address)["status"] == "running"
    store.put("progress.json", b'{"status": "run')
    assert state(store.address)["status"] == "running", "progress is for the eyes only"
