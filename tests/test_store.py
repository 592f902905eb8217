"""The five verbs: all or nothing, first come, and sentences for what the disk says."""

import errno
import os
import pickle
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.dataset.storage import ConflictError, Store, StoreFullError
from factory.errors import UserError


def test_what_is_created_can_be_read_listed_and_deleted(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "set"))
    assert store.create("train/0.tar", b"abc")
    assert store.get("train/0.tar") == b"abc"
    assert store.list("train") == {"train/0.tar": 3}
    store.delete("train/0.tar")
    store.delete("train/0.tar")
    assert store.get("train/0.tar") is None
    assert store.list("train") == store.list("nothing") == {}


def test_the_first_writer_wins_and_the_same_bytes_again_are_no_error(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert store.create("a", b"1")
    assert not store.create("a", b"2")
    store.create_same("a", b"1")
    with pytest.raises(ConflictError, match="exists with sha256"):
        store.create_same("a", b"2")
    assert store.get("a") == b"1"


def test_swap_replaces_only_what_was_seen(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert store.compare_and_swap("p", b"1", None)
    assert not store.compare_and_swap("p", b"2", None)
    assert not store.compare_and_swap("p", b"2", b"0")
    assert store.compare_and_swap("p", b"2", b"1")
    assert store.get("p") == b"2"


def test_a_half_written_file_is_not_listed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.create("train/0.tar", b"1")
    (tmp_path / "train" / "1.tar#1").write_bytes(b"half")
    assert list(store.list("train")) == ["train/0.tar"]


def test_a_store_travels_as_its_address(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.create("a", b"1")
    assert pickle.loads(pickle.dumps(store)).get("a") == b"1"


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(UserError, match="no storage speaks ftp://"):
        Store("ftp://host/x")


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="Give a folder or bucket that can be read and written"):
        Store(str(tmp_path / "file")).create("a", b"1")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk]).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tiny_disk: Path) -> None:
    store = Store(str(tiny_disk))
    store.create("small", b"1" * 1000)
    with pytest.raises(StoreFullError, match="Make room and run the same command again"):
        store.create("large", b"1" * 400_000)
    assert store.list("") == {"small": 1000}
    assert store.create("fits", b"1" * 100_000)


def test_looking_for_what_is_not_there_makes_no_folder(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "nowhere"))
    assert store.get("recipe.yaml") is None
    assert store.list("") == {}
    store.delete("recipe.yaml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flock", [True, False])
def test_a_swap_is_taken_in_turns_also_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: bool
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if not flock:
        monkeypatch.setattr("fcntl.flock", refuse)
        (tmp_path / ".lock.held").touch()
        os.utime(tmp_path / ".lock.held", (0, 0))  # of a process that was killed in its turn
    store = Store(str(tmp_path))
    store.put("n", b"0")

    def count() -> None:
        for _ in range(10):
            while not store.compare_and_swap("n", str(int(seen := store.get("n") or b"0") + 1).encode(), seen):
                pass

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get("n") == b"40"
    assert not (tmp_path / ".lock.held").exists()
