"""Leases of drivers that are stopped, cut off or hidden: nobody takes over a living driver or deletes its files."""

import builtins
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factory.dataset import lease
from factory.dataset.lease import LEASE, HeldLease, Lease, acquire, has_ended, is_stale, leased, parse_lease
from factory.dataset.storage import Store, StoreFullError
from factory.errors import LeaseHeldError
from factory.files.processes import process_identity
from tests.support.bucket import Bucket, Fault

ELSEWHERE = Lease("abc", "node-7", 12, "other-boot/pid:[1]/5", "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def current(store: Store) -> Lease:
    found = parse_lease(store.get(LEASE))
    assert found is not None
    return found


def stop_for(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had been stopped: time has passed without a heartbeat."""
    monkeypatch.setattr(lease, "_clock", lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + seconds)


def test_heartbeat_whose_response_was_lost_is_continued(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outage was longer than the patience, so the heartbeat does not know that it was written."""
    monkeypatch.setattr(lease, "BEAT", 0.05)
    with leased(store) as held:
        with held._renewing:
            store.put(LEASE, replace(current(store), beat=1000).to_json())
        end = time.monotonic() + 30
        while current(store).beat < 1002 and time.monotonic() < end:
            time.sleep(0.02)
        assert current(store).beat >= 1002
        held.check()


def test_lease_that_was_left_in_an_outage_does_not_stop_the_next_call_of_this_process(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook calls `factory.generate` again: its own process was "another driver" until it ended."""
    monkeypatch.setattr(lease, "_RELEASE_PATIENCE", 0.1)
    store = Store("s3://b/set")
    with leased(store) as first:
        bucket.faults.append(Fault("outage", times=None, seconds=600))
    bucket.faults.clear()
    assert current(store).holder == first.holder
    assert is_stale(store) is True
    with leased(store) as second:
        assert second.epoch == first.epoch + 1


@pytest.mark.parametrize(
    "leave", [lambda store: store.put(LEASE, ELSEWHERE.to_json()), lambda store: store.delete(LEASE)]
)
def test_driver_that_was_stopped_learns_that_another_one_worked(
    store: Store, leave: Callable[[Store], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its next heartbeat, and also if the other driver has ended and released the lease."""
    with leased(store) as held:
        leave(store)
        stop_for(lease.EXPIRES + 1, monkeypatch)
        held.check()
        with pytest.raises(LeaseHeldError, match="another driver took over"):
            held.confirm()
        assert held.lost
        assert parse_lease(store.get(LEASE)) in (None, ELSEWHERE)


def test_driver_that_was_stopped_continues_if_no_other_one_came(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with leased(store) as held:
        stop_for(2 * lease.BEAT + 1, monkeypatch)
        held.confirm()
        assert current(store).beat == 1, "renewed long before it expires"
        stop_for(2 * lease.BEAT + 2, monkeypatch)
        held.confirm()
        assert current(store).beat == 1, "a fresh lease is not renewed"


def test_outage_while_a_heartbeat_is_watched_is_not_silence(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other driver could not renew its lease either."""
    store.put(LEASE, ELSEWHERE.to_json())
    reads, now = 0, 0.0
    get = store.get

    def outage(name: str) -> bytes | None:
        nonlocal reads, now
        reads += 1
        now += 300 if reads == 3 else 0
        if reads == 5:
            store.put(LEASE, replace(ELSEWHERE, beat=1).to_json())
        return get(name)

    monkeypatch.setattr(store, "get", outage)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with pytest.raises(LeaseHeldError, match="process 12 on node-7"):
        acquire(store)


def test_process_that_is_hidden_from_this_user_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc can be mounted with `hidepid`, as on shared clusters."""
    running, place = Lease("abc", "here", 1, process_identity(1), "", ""), process_identity(os.getpid())
    assert has_ended(running) is False
    real = builtins.open

    def hidden(path: Any, *arguments: Any) -> Any:
        if path == "/proc/1/stat":
            raise FileNotFoundError(path)
        return real(path, *arguments)

    def forbidden(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(builtins, "open", hidden)
    monkeypatch.setattr(os, "kill", forbidden)
    assert has_ended(running) is None
    monkeypatch.setattr(lease, "_held", {"abc"})
    assert has_ended(Lease("abc", "here", os.getpid(), place, "", "")) is False


def test_process_with_a_name_that_is_not_utf_8_is_identified(tmp_path: Path) -> None:
    """Linux cuts names after 15 bytes: a program of the user with a name of Japanese letters could not take a lease."""
    program = tmp_path / "x\u30c7\u30fc\u30bf\u751f\u6210"
    program.symlink_to(os.path.realpath(sys.executable))
    with subprocess.Popen([program, "-c", "import time; time.sleep(60)"]) as process:
        try:
            assert has_ended(Lease("abc", "here", process.pid, process_identity(process.pid), "", "")) is False
        finally:
            process.kill()


def test_heartbeat_continues_after_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, another driver would take the lease over a minute after the disk was full for a moment."""
    monkeypatch.setattr(lease, "BEAT", 0.05)
    errors, swap = [StoreFullError("no space left")], Store.compare_and_swap

    def full_once(self: Store, *arguments: Any, **options: Any) -> bool:
        if threading.current_thread().name == "heartbeat" and errors:
            raise errors.pop()
        return swap(self, *arguments, **options)

    monkeypatch.setattr(Store, "compare_and_swap", full_once)
    with leased(store):
        end = time.monotonic() + 30
        while current(store).beat < 1 and time.monotonic() < end:
            time.sleep(0.02)
        assert current(store).beat >= 1
    assert not errors


def test_lease_that_became_unreadable_is_written_again(store: Store) -> None:
    held = HeldLease(store, acquire(store))
    store.put(LEASE, b"")
    held._renew(store)
    assert current(store).beat == 1
    held.release()
    assert store.get(LEASE) is None
    held._renew(store)
    assert store.get(LEASE) is None, "a heartbeat that was on its way"


def test_lease_that_a_faster_driver_took_over_is_not_taken_from_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both waited for the same driver, which has died."""
    faster = replace(ELSEWHERE, holder="def")

    def wait(store: Store, found: Lease, log: object) -> None:
        if found == faster:
            raise LeaseHeldError("it is alive")
        store.put(LEASE, faster.to_json())

    monkeypatch.setattr(lease, "_wait_until_dead", wait)
    store.put(LEASE, ELSEWHERE.to_json())
    with pytest.raises(LeaseHeldError, match="it is alive"):
        acquire(store)
    assert current(store) == faster
