"""Concurrent requests to a store: limits of threads, errors, interrupts, and one slow request among many."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factory.dataset.ordered_map import ordered_map
from factory.dataset.storage import Store
from factory.dataset.storage_listing import list_bucket
from factory.errors import UserError
from factory.files import atomic
from factory.nightly.exports import upload

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than two threads can be started, as in a container that was started with `--pids-limit 100`."""
    starts, start = iter(range(99)), threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if next(starts) >= 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)


@pytest.mark.usefixtures("two_threads")
def test_reads_use_fewer_threads_where_no_more_can_be_started() -> None:
    def read(number: int) -> int:
        time.sleep(0.01)
        return -number

    assert list(ordered_map(read, range(9), threads=8, ahead=9, name="readers")) == [(k, -k) for k in range(9)]


@pytest.mark.usefixtures("two_threads")
def test_exports_use_fewer_threads_where_no_more_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronised = list[Path]()

    def synchronise(path: Path) -> None:
        time.sleep(0.01)
        synchronised.append(path)

    monkeypatch.setattr(atomic, "synchronise", synchronise)
    files = [tmp_path / f"{number:09d}.jpg" for number in range(9)]
    atomic.synchronise_all(files)
    assert {*synchronised} == {*files, tmp_path}


def test_an_error_of_a_read_is_raised_after_the_other_reads() -> None:
    """Reads in the background would still use the store, and the streams and the random numbers of the process."""
    started, finished = threading.Event(), threading.Event()

    def read(number: int) -> None:
        if number == 0:
            assert started.wait(20)
            raise UserError("corrupt")
        started.set()
        time.sleep(0.2)
        finished.set()

    with pytest.raises(UserError):
        list(ordered_map(read, range(2), threads=2, ahead=2, name="readers"))
    assert finished.is_set()


@pytest.mark.parametrize(
    "call",
    [
        lambda read: list(ordered_map(read, range(3), threads=2, ahead=3, name="readers")),
        lambda read: list_bucket(read, "s3", "receipts", bounds=["receipts/01", "receipts/02"]),
    ],
    ids=["reads", "listing"],
)
def test_interrupt_does_not_wait_for_a_store_that_does_not_respond(call: Callable[[Any], Any]) -> None:
    responds, calls = threading.Event(), iter(range(9))

    def read(_: object) -> None:
        if next(calls) == 0:
            raise KeyboardInterrupt
        assert responds.wait(20)

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        call(read)
    assert time.monotonic() - started < 10
    responds.set()


def test_interrupted_upload_does_not_wait_for_a_store_that_does_not_respond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night was killed after its stop timeout, without a record and a release of the lease."""
    for name in "abc":
        (tmp_path / name).write_text(name)
    responds, calls = threading.Event(), iter(range(9))

    def put_file(*_: object) -> None:
        if next(calls) == 0:
            raise KeyboardInterrupt
        assert responds.wait(20)

    monkeypatch.setattr(Store, "put_file", put_file)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        upload(tmp_path, Store("s3://bucket/nights"), "2026-11-25/exports/coco")
    assert time.monotonic() - started < 10
    responds.set()


def test_many_reads_go_on_while_one_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.dataset.storage._READERS", 4)
    store, names = Store("s3://b/set"), [f"receipts/{number}" for number in range(50)]
    others, lock, all_others = set(names) - {"receipts/30"}, threading.Lock(), threading.Event()

    def read(name: str) -> tuple[bytes, str]:
        if name == "receipts/30":
            assert all_others.wait(20), "all others are answered meanwhile"
        with lock:
            others.discard(name)
            if not others:
                all_others.set()
        return name.encode(), ""

    monkeypatch.setattr(store, "get_tagged", read)
    assert list(store.get_many(names)) == [(name, (name.encode(), "")) for name in names]
