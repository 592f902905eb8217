"""Stores: folders listed without their content, large files sent in parts, many names deleted at once."""

import errno
import os
import re
import time
from pathlib import Path

import pytest

from factory.dataset.storage import Store
from factory.dataset.storage_errors import translated_errors
from factory.dataset.storage_folder import delete_abandoned
from factory.errors import UserError
from factory.files import lock
from tests.support.bucket import Bucket, Fault


@pytest.fixture(params=["folder", "s3://b/root", "gs://b/root"])
def store(request: pytest.FixtureRequest, bucket: Bucket, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root") if request.param == "folder" else request.param)


def test_folders_are_listed_without_their_files(store: Store) -> None:
    assert store.folders() == []
    for name in ("2026-11-25/night.json", "2026-11-25/dataset/recipe.yaml", "2026-11-26/a", "latest.json", ".lock"):
        store.put(name, b"1")
    assert store.folders() == ["2026-11-25", "2026-11-26"]


@pytest.mark.parametrize("below", ["", "/sub/set"])
def test_a_file_in_the_place_of_a_folder_is_named_by_every_write(tmp_path: Path, below: str) -> None:
    """The message named a file that the user does not know, such as .report-is-writable, and an error number."""
    (tmp_path / "notes").touch()
    store = Store(f"{tmp_path}/notes{below}")
    message = re.escape(f"cannot use {tmp_path}/notes{below}: a part of this path is a file, not a folder. Give")
    for write in (store.put, store.create, lambda name, data: store.compare_and_swap(name, data, None)):
        with pytest.raises(UserError, match=f"^{message}"):
            write("lease.json", b"1")


@pytest.mark.parametrize(
    ("number", "problem"), [(errno.EACCES, "permission denied"), (errno.EROFS, "the file system is read-only")]
)
def test_a_folder_that_cannot_be_written_is_named(number: int, problem: str) -> None:
    error = OSError(number, os.strerror(number), "/absolute/out/.lock")
    with (
        pytest.raises(UserError, match=rf"^cannot use out: {problem}\. Give"),
        translated_errors("out/a", False, True, str),
    ):
        raise error


@pytest.mark.parametrize("size", [0, 100, 40_000_000])
def test_files_of_any_size_are_written(store: Store, tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"." * (size % 256)
    (tmp_path / "file").write_bytes(data)
    store.put_file("exports/file", tmp_path / "file")
    assert store.get("exports/file") == data
    (tmp_path / "file").write_bytes(b"new")
    store.put_file("exports/file", tmp_path / "file")
    assert store.get("exports/file") == b"new"


def test_large_file_is_sent_in_parts(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1" * 40_000_000)
    Store("s3://b/root").put_file("file", tmp_path / "file")
    assert bucket.requests["PUT"] == 3


def test_error_in_a_successful_response_to_an_upload_in_parts_is_retried(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 has sent the status 200 before it puts the parts together, so the body may be an error."""
    monkeypatch.setattr("factory.dataset.storage._PART", 5 << 20)
    (tmp_path / "file").write_bytes(b"1" * 6_000_000)
    bucket.faults[:] = [Fault("status", "POST .*uploadId", code=200)]
    Store("s3://b/root").put_file("file", tmp_path / "file")
    assert bucket.faults[0].times == 0
    assert len(bucket.objects["b/root/file"][0]) == 6_000_000


def test_many_names_are_deleted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.dataset.storage._DELETED_AT_ONCE", 3)
    for number in range(1, 6):
        store.put(f"a/{number}", b"1")
    store.put("b", b"1")
    store.delete_all(["a/0", "a/9", *store.list("a")])
    store.delete_all([])
    assert list(store.list("")) == ["b"]


def test_an_empty_address_is_rejected() -> None:
    """It would mean the working directory, for example if a shell variable is not set."""
    with pytest.raises(UserError, match="the address of a dataset is empty"):
        Store("")


def test_file_gets_its_name_when_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power failure, a name that the file system wrote before the content would belong to an empty file."""
    store = Store(str(tmp_path))
    store.create("recipe.yaml", b"old")

    def power_failure(file: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", power_failure)
    with pytest.raises(KeyboardInterrupt):
        store.create("train/000000.tar", b"samples")
    with pytest.raises(KeyboardInterrupt):
        store.compare_and_swap("recipe.yaml", b"extended", b"old")
    assert store.list("") == {".lock": 0, "recipe.yaml": 3}
    assert store.get("recipe.yaml") == b"old"


def test_folder_that_disappears_during_a_write_is_an_error_of_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "set"))
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: path.parent.rmdir())
    with pytest.raises(UserError, match=r"No such file or directory: '[^#]*/train/000000\.tar'\. Give a folder"):
        store.create("train/000000.tar", b"samples")


def test_temporary_files_of_killed_processes_are_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    for name, age in (("000000.tar", 3600), ("000001.tar#12", 3600), ("000002.tar#34", 60), ("notes#1", 3600)):
        (folder / name).touch()
        os.utime(folder / name, (0, time.time() - age))
    delete_abandoned(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["000000.tar", "000002.tar#34", "notes#1"]


def test_driver_that_was_stopped_with_the_lock_file_does_not_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without `flock`, its lock file is removed as abandoned; both drivers would have the lease."""

    def unsupported(file: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    monkeypatch.setattr(lock, "_ABANDONED", -1.0)
    stopped, other = Store(str(tmp_path)), Store(str(tmp_path))
    get = stopped.get

    def get_and_stop(name: str) -> bytes | None:
        content = get(name)
        assert other.compare_and_swap(name, b"other", content)
        return content

    monkeypatch.setattr(stopped, "get", get_and_stop)
    assert not stopped.compare_and_swap("lease.json", b"stopped", None)
    assert other.get("lease.json") == b"other"
    assert other.compare_and_swap("lease.json", b"later", b"other"), "the lock file is gone"
