"""Stores in folders: atomic writes, first writer wins, and clear error messages."""

import errno
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.config.recipe import make_recipe
from factory.dataset.storage import ConflictError, Store, StoreFullError
from factory.dataset.stored_recipe import existing_recipe, init_or_resume
from factory.errors import UserError


def test_create_get_list_delete(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "set"))
    assert store.create("train/0.tar", b"abc")
    assert store.get("train/0.tar") == b"abc"
    assert store.list("train") == {"train/0.tar": 3}
    store.delete("train/0.tar")
    store.delete("train/0.tar")
    assert store.get("train/0.tar") is None
    assert store.list("train") == store.list("nothing") == {}


def test_first_writer_wins_and_same_bytes_are_accepted(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert store.create("a", b"1")
    assert not store.create("a", b"2")
    store.create_same("a", b"1")
    with pytest.raises(ConflictError, match=r"it is incomplete\. .* `factory verify .* --repair` deletes it"):
        store.create_same("a", b"2")
    assert store.get("a") == b"1"


def test_compare_and_swap(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert store.compare_and_swap("p", b"1", None)
    assert not store.compare_and_swap("p", b"2", None)
    assert not store.compare_and_swap("p", b"2", b"0")
    assert store.compare_and_swap("p", b"2", b"1")
    assert store.get("p") == b"2"


def test_partial_file_is_not_listed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.create("train/0.tar", b"1")
    (tmp_path / "train" / "1.tar#1").write_bytes(b"half")
    assert list(store.list("train")) == ["train/0.tar"]


def test_store_can_be_pickled(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.create("a", b"1")
    assert pickle.loads(pickle.dumps(store)).get("a") == b"1"


def test_unknown_scheme_is_rejected() -> None:
    with pytest.raises(UserError, match=r"ftp:// is not supported.* a URL such as s3://bucket/prefix, gs:// or az://"):
        Store("ftp://host/x")


def test_unwritable_path_raises_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="Give a folder or bucket that can be read and written"):
        Store(str(tmp_path / "file")).create("a", b"1")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KB; requires root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk]).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk_raises_a_clear_error_and_leaves_no_partial_file(tiny_disk: Path) -> None:
    store = Store(str(tiny_disk))
    store.create("small", b"1" * 1000)
    with pytest.raises(StoreFullError, match="Free some space and rerun the same command"):
        store.create("large", b"1" * 400_000)
    assert store.list("") == {"small": 1000}
    assert store.create("fits", b"1" * 100_000)


def test_a_file_that_does_not_reach_the_disk_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network file systems and quotas may report a full disk only then."""

    def refuse(file: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    store = Store(str(tmp_path))
    assert store.create("train/0.tar", b"1")
    monkeypatch.setattr(os, "fsync", refuse)
    for name in ("train/0.tar", "train/1.tar"):
        with pytest.raises(StoreFullError, match="Free some space and rerun the same command"):
            store.create(name, b"1")
    assert list(store.list("train")) == ["train/0.tar"]


def test_file_handle_that_is_stale_only_once_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network file systems report it after a restart of their server, also for `fsync`."""
    errors, fsync = [errno.ESTALE, errno.ETIMEDOUT], os.fsync

    def fail_first(file: int) -> None:
        if errors:
            raise OSError(errors.pop(), "of the server")
        fsync(file)

    monkeypatch.setattr(os, "fsync", fail_first)
    assert Store(str(tmp_path)).create("train/0.tar", b"1")
    assert not errors
    assert (tmp_path / "train/0.tar").read_bytes() == b"1"


def test_link_to_a_missing_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can neither be created nor read; the store tried both without end."""
    monkeypatch.setattr("factory.dataset.storage._CONFLICT_TIMEOUT", 0.1)
    for name in ("0.tar", "recipe.yaml"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    store, recipe = Store(str(tmp_path)), make_recipe({"n": 4})
    for write in (lambda: store.create_same("0.tar", b"1"), lambda: init_or_resume(store, recipe)):
        with pytest.raises(UserError, match="can neither be created nor read: it is a link to a missing file"):
            write()


def test_large_file_without_hard_links_is_written_outside_the_lock(tmp_path: Path) -> None:
    """Otherwise all workers write one after the other, and the heartbeat of the lease waits for them."""
    store, data = Store(str(tmp_path)), b"1" * 100_000
    assert store._folder_writes is not None
    store._folder_writes._has_links = False
    created = list[bool]()
    writer = threading.Thread(target=lambda: created.append(store.create("train/0.tar", data)))
    with store._folder_writes.locked():
        writer.start()
        deadline = time.monotonic() + 30
        while not (written := list(tmp_path.glob("train/0.tar#*"))) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert written
        assert store.list("train") == {}
    writer.join()
    assert created == [True]
    assert not store.create("train/0.tar", b"2")
    assert [path.read_bytes() for path in (tmp_path / "train").iterdir()] == [data]


def test_lock_files_are_not_foreign_files(tmp_path: Path) -> None:
    for name in (".lock", ".lock.held", ".lock.held.removal", "lease.json"):
        (tmp_path / name).touch()
    assert existing_recipe(Store(str(tmp_path))) is None
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match=r"not a dataset: it has no recipe.yaml, but contains photo.jpg"):
        existing_recipe(Store(str(tmp_path)))


def test_reading_creates_no_folder(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "nowhere"))
    assert store.get("recipe.yaml") is None
    assert store.list("") == {}
    store.delete("recipe.yaml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flock", [True, False])
def test_compare_and_swap_is_atomic_with_and_without_flock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: bool
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if not flock:
        monkeypatch.setattr("fcntl.flock", refuse)
        (tmp_path / ".lock.held").touch()
        os.utime(tmp_path / ".lock.held", (0, 0))  # left by a killed process
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


def test_the_client_library_is_imported_before_threads_use_a_store(tmp_path: Path) -> None:
    """Otherwise threads import the package and its submodules in different orders, and one gets it incomplete."""
    code = (
        "import sys; from factory.dataset.storage import Store; assert 'obstore' not in sys.modules; "
        "Store(sys.argv[1]); print(hasattr(sys.modules['obstore'], 'put'))"
    )
    assert subprocess.check_output([sys.executable, "-c", code, str(tmp_path)], text=True) == "True\n"
