"""Two drivers on one dataset: leases, takeovers, heartbeats and stale runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from factory.cli.status import state
from factory.config.recipe import make_recipe
from factory.config.sections import StoreRecipe
from factory.dataset import lease
from factory.dataset.lease import LEASE, Lease, acquire, is_stale, leased, parse_lease
from factory.dataset.storage import Store
from factory.errors import LeaseHeldError, StoreUnavailableError, TransientError, UserError
from tests.support.bucket import Bucket, Fault

ELSEWHERE = Lease("abc", "node-7", 12, "other-boot/pid:[1]/5", "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00")


@pytest.fixture(params=["folder", "s3://b/set", "gs://b/set"])
def store(request: pytest.FixtureRequest, tmp_path: Path, bucket: Bucket) -> Store:
    return Store(str(tmp_path) if request.param == "folder" else request.param)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease of another machine is read every 0.05 s."""
    monkeypatch.setattr(lease, "_POLL_INTERVAL", 0.05)


def holder(store: Store) -> str:
    found = parse_lease(store.get(LEASE))
    assert found is not None
    return found.holder


def test_second_driver_is_rejected(store: Store) -> None:
    with (
        leased(store),
        pytest.raises(LeaseHeldError, match=rf"process {os.getpid()} on .* take over with --force") as raised,
        leased(store),
    ):
        pass
    assert isinstance(raised.value, TransientError)
    assert store.get(LEASE) is None, "released at the end"


@pytest.mark.parametrize("address", ["s3://b/set", "gs://b/set"])
def test_bucket_that_ignores_conditional_writes_is_rejected(address: str, bucket: Bucket) -> None:
    bucket.ignores_conditions = True
    with pytest.raises(UserError, match=r"does not honour conditional writes: it created lease\.json twice"):
        acquire(Store(address))
    assert bucket.objects == {}


def test_only_one_driver_gets_the_lease(store: Store) -> None:
    holders, start = list[str](), threading.Barrier(6)

    def try_acquire() -> None:
        start.wait()
        try:
            holders.append(acquire(store).holder)
        except LeaseHeldError:
            holders.append("")

    threads = [threading.Thread(target=try_acquire) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(holders)[:5] == [""] * 5
    assert sorted(holders)[5] == holder(store)


def test_forced_takeover_stops_the_first_driver(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    with leased(store) as first:
        first.check()
        with leased(store, force=True):
            deadline = time.monotonic() + 30
            while not first.lost and time.monotonic() < deadline:
                time.sleep(0.02)
            with pytest.raises(LeaseHeldError, match="another driver took over"):
                first.check()
    assert store.get(LEASE) is None


@pytest.mark.usefixtures("often")
def test_remote_driver_with_heartbeat_is_alive(store: Store) -> None:
    """Its timestamps are old but its heartbeat moves, so it is alive regardless of clocks."""
    store.put(LEASE, ELSEWHERE.to_json())
    beating = threading.Timer(0.3, lambda: store.put(LEASE, replace(ELSEWHERE, beat=1).to_json()))
    beating.start()
    with pytest.raises(LeaseHeldError, match="process 12 on node-7"):
        acquire(store)


@pytest.mark.usefixtures("often")
def test_remote_driver_without_heartbeat_is_taken_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "EXPIRES", 0.3)
    store.put(LEASE, ELSEWHERE.to_json())
    messages = list[str]()
    taken = acquire(store, log=messages.append)
    assert taken.holder == holder(store) != "abc"
    assert taken.epoch == ELSEWHERE.epoch + 1
    assert acquire(store, force=True).epoch == taken.epoch + 1
    assert "process 12 on node-7" in messages[0]


def test_killed_local_driver_is_taken_over_immediately(tmp_path: Path) -> None:
    code = (
        "import sys, time; from factory.dataset.lease import *\n"
        "acquire(Store(sys.argv[1])); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        store = Store(str(tmp_path))
        assert is_stale(store) is False
        with pytest.raises(LeaseHeldError, match=f"process {driver.pid}"):
            acquire(store)
        driver.send_signal(signal.SIGKILL)
    assert is_stale(store) is True
    start = time.monotonic()
    acquire(store)
    assert time.monotonic() - start < 30, "it did not wait for a heartbeat"


def beats(store: Store) -> int:
    """The number of heartbeats so far; -1 if there is no lease."""
    found = parse_lease(store.get(LEASE))
    return -1 if found is None else found.beat


def wait_for_beats(store: Store, count: int) -> bool:
    """Whether the lease reaches this number of heartbeats; retries after an outage take their time."""
    deadline = time.monotonic() + 30
    while beats(store) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    return beats(store) >= count


def test_heartbeat_continues_after_an_outage(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    store = Store("s3://b/set")
    with leased(store) as held:
        bucket.faults[:] = [Fault("outage", times=None, seconds=0.7), Fault("lost", "PUT", times=3)]
        deadline = time.monotonic() + 30
        while bucket.faults[1].times and time.monotonic() < deadline:
            time.sleep(0.01)
        bucket.faults.clear()
        held.check()
        assert wait_for_beats(store, beats(store) + 2)
    assert store.get(LEASE) is None


def test_outage_that_outlasts_the_patience_ends_the_run(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers repeat their shards, so that nothing else would ever end the run with code 75."""
    monkeypatch.setattr(lease, "BEAT", 0.05)
    with leased(Store("s3://b/set", StoreRecipe(patience=0.3))) as held:
        held.check()
        bucket.faults[:] = [Fault("reset", times=None)]
        held._thread.join(10)
        with pytest.raises(StoreUnavailableError, match="rerun the same command when it responds again"):
            held.check()
        bucket.faults.clear()


def test_stalled_request_does_not_stop_the_heartbeat(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request may take a minute, after which another driver would take the lease over."""
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "_TIMEOUT", 0.3)
    with leased(store := Store("s3://b/set")):
        for method in ("GET", "PUT"):
            before, start = beats(store), time.monotonic()
            bucket.faults[:] = [Fault("stall", f"{method} .*lease", seconds=30)]
            while bucket.faults[0].times and time.monotonic() < start + 25:
                time.sleep(0.01)
            assert wait_for_beats(store, before + 3)
            assert time.monotonic() < start + 25


def test_lease_is_released_after_a_heartbeat_whose_response_was_lost(store: Store) -> None:
    with leased(store):
        written = parse_lease(store.get(LEASE))
        assert written is not None
        store.put(LEASE, replace(written, beat=written.beat + 1).to_json())
    assert store.get(LEASE) is None


def test_lease_of_another_driver_is_not_released(store: Store) -> None:
    with leased(store):
        store.put(LEASE, ELSEWHERE.to_json())
    assert holder(store) == "abc"


def test_heartbeat_survives_the_deletion_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    store = Store(str(tmp_path / "set"))
    with leased(store) as held:
        shutil.rmtree(tmp_path / "set")
        assert wait_for_beats(store, 1), "written again, so that no other driver starts"
        held.check()


def test_error_names_the_driver_that_has_the_lease_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.put(LEASE, ELSEWHERE.to_json())
    faster = replace(ELSEWHERE, holder="def", host="node-8")
    monkeypatch.setattr(time, "sleep", lambda seconds: store.put(LEASE, faster.to_json()))
    with pytest.raises(LeaseHeldError, match="process 12 on node-8"):
        acquire(store)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", b'{"holder": 1}', b"\xff", b"[" * 100_000,
        replace(ELSEWHERE, place=7).to_json(), replace(ELSEWHERE, epoch="1").to_json(),
    ],
)  # fmt: skip
def test_invalid_lease_is_ignored(tmp_path: Path, data: bytes) -> None:
    store = Store(str(tmp_path))
    store.put(LEASE, data)
    assert acquire(store).holder == json.loads(store.get(LEASE) or b"{}")["holder"]


def test_status_reports_stale_runs(store: Store, tmp_path: Path) -> None:
    store.create("recipe.yaml", make_recipe({"n": 4}).to_yaml().encode())
    assert state(store.address)["status"] == "initialized"
    store.put("progress.json", b'{"status": "running"}')
    assert state(store.address)["status"] == "stale", "no lease"
    with leased(store):
        assert state(store.address)["status"] == "running"
    store.put(LEASE, ELSEWHERE.to_json())
    assert state(store.address)["status"] == "stale", "no heartbeat for a long time"
    now = datetime.now(UTC).isoformat()
    store.put(LEASE, replace(ELSEWHERE, updated=now).to_json())
    assert state(store.address)["status"] == "running"
    store.put("progress.json", b'{"status": "run')
    assert state(store.address)["status"] == "running", "corrupt progress is ignored"


def test_lease_of_another_machine_is_stale_when_it_has_expired(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for seconds in (lease.EXPIRES - 1, lease.EXPIRES + lease.BEAT + 1):
        updated = datetime.now(UTC) - timedelta(seconds=seconds)
        store.put(LEASE, replace(ELSEWHERE, updated=updated.isoformat()).to_json())
        assert is_stale(store) is (seconds > lease.EXPIRES)


def test_lease_whose_time_cannot_be_read_is_stale(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put(LEASE, replace(ELSEWHERE, updated="yesterday").to_json())
    assert is_stale(store) is True
