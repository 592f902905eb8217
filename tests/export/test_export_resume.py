"""Interrupted exports resume and give the same bytes."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory import exit_codes
from factory.config.vocabulary import from_names
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.export import run as export_run
from factory.export.coco import CocoFormat
from factory.export.folder import STATE, ExportFolder, translated_errors
from factory.export.hf import HuggingFaceFormat
from factory.export.interface import ExportInfo, ExportSample
from factory.export.run import Export, Options
from factory.export.voc import VocFormat
from factory.export.yolo import YoloFormat
from tests.support.export_datasets import (
    FORMATS,
    SHARD_SIZE,
    SHARDS,
    VAL,
    content,
    make_dataset,
    run,
)

SAMPLES = 5_000


class ManyRecords:
    """Implements `interface.Records` with many samples whose files do not exist."""

    units = 1

    def __init__(self, form: str) -> None:
        self._form = form

    def of(self, split: str) -> Iterator[Any]:
        keys = (f"{number:09d}" for number in range(split == "val", 2 * SAMPLES, 2))
        image = {"image": {"file_name": ""}, "annotations": ()}
        return keys if self._form != "coco" else (image | {"image": {"file_name": f"{key}.jpg"}} for key in keys)

    def count(self, split: str) -> int:
        return SAMPLES


@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_memory_does_not_grow_with_the_samples_of_an_export(tmp_path: Path, form: str) -> None:
    output = export_run.FORMATS[form](ExportInfo(tmp_path, from_names(("dog",), "the test"), "0" * 64), False)
    output.write(0, [])
    folder = next(path for path in tmp_path.rglob("*") if path.name in ("train", "JPEGImages"))
    (stale := folder / "900000000.jpg").touch()
    tracemalloc.start()
    output.finish(ManyRecords(form))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < SAMPLES * 20, "keys as strings would take 100 bytes each"
    assert not stale.exists()


@pytest.mark.parametrize("purpose", [b"", b"{", b"[1]", b"7", b"\xff"])
def test_corrupt_state_is_reported(tmp_path: Path, purpose: bytes) -> None:
    (tmp_path / STATE).mkdir()
    (tmp_path / STATE / "purpose.json").write_bytes(purpose)
    with pytest.raises(UserError, match=rf"/{STATE} is corrupt \(.*\); delete .* and export again"):
        ExportFolder(tmp_path, {"format": "coco"}).check()


@pytest.mark.parametrize("form", FORMATS)
def test_export_interrupted_at_any_sample_resumes(store: Store, tmp_path: Path, form: str) -> None:
    run(store, tmp_path / "uninterrupted", form)

    for stop_at in range(1, SHARD_SIZE * SHARDS + 1, 3):

        def stop(done: int, stop_at: int = stop_at) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Export(store, tmp_path / "interrupted", Options(form, VAL)).run(stop)
    run(store, tmp_path / "interrupted", form)
    assert content(tmp_path / "interrupted") == content(tmp_path / "uninterrupted")


def test_export_copied_by_macos_is_resumed(tmp_path: Path) -> None:
    """macOS adds a file to each file on a disk of another system; the one in parts/ ended in a traceback."""
    growing, _ = make_dataset(tmp_path / "set", [0, 1])
    run(growing, tmp_path / "out", "hf", partial=True)
    for path in [path for path in (tmp_path / "out").rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(bytes.fromhex("00051607"))
    make_dataset(tmp_path / "set", [2, 3, 4])
    assert run(growing, tmp_path / "out", "hf").complete


def test_progress_of_a_resumed_export_starts_at_what_exists(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path / "out", "coco")
    (tmp_path / "out" / STATE / "parts" / "000001.json").unlink()
    seen = list[int]()
    Export(store, tmp_path / "out", Options("coco", VAL)).run(seen.append)
    assert seen == list(range(SHARD_SIZE * (SHARDS - 1), SHARD_SIZE * SHARDS + 1))


@pytest.mark.parametrize("form", FORMATS)
def test_files_are_on_the_disk_before_their_unit_counts_as_written(
    store: Store, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure could otherwise keep empty images that a resumed export takes as written."""
    synchronised, parts = dict[int, int](), tmp_path / "out" / STATE / "parts"

    def record(file: int) -> None:
        synchronised.setdefault(os.fstat(file).st_ino, len(list(parts.glob("*.json"))))

    monkeypatch.setattr(os, "fsync", record)
    run(store, tmp_path / "out", form)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and STATE not in path.parts]
    images = [path for path in files if path.suffix in (".jpg", ".parquet")]
    assert {path for path in files if path.stat().st_ino not in synchronised} == set()
    assert {synchronised[path.stat().st_ino] for path in images} == set(range(len(list(parts.glob("*.json")))))


@pytest.mark.parametrize("form", FORMATS)
def test_export_interrupted_at_any_rename_resumes(
    store: Store, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files appear by renames: for units, at the end, and for files of an earlier, smaller export."""
    run(store, tmp_path / "uninterrupted", form)
    run(make_dataset(tmp_path / "set", [0, 1, 3])[0], tmp_path / "partial", form, partial=True)
    for stop in itertools.count():
        shutil.copytree(tmp_path / "partial", tmp_path / str(stop))
        renames = iter([os.replace] * stop)

        def interrupt(*names: Any, renames: Any = renames) -> None:
            rename = next(renames, None)
            if rename is None:
                raise KeyboardInterrupt
            rename(*names)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", interrupt)
            try:
                run(store, tmp_path / str(stop), form)
                break
            except KeyboardInterrupt:
                patch.undo()
        run(store, tmp_path / str(stop), form)
        assert content(tmp_path / str(stop)) == content(tmp_path / "uninterrupted")
    assert stop > 4


def test_export_of_a_killed_process_resumes(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path / "uninterrupted", "hf")
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from factory.export import run\nfrom factory.dataset.storage import Store\n"
        "from factory.export.hf import HuggingFaceFormat\n"
        "run.FORMATS['hf'] = lambda info, polygons: HuggingFaceFormat(info, 140_000)\n"
        f"job = run.Export(Store(sys.argv[1]), Path(sys.argv[2]), run.Options('hf', {VAL}))\n"
        "job.run(lambda done: os.kill(os.getpid(), 9) if done == 13 else None)\n"
    )
    program = [sys.executable, "-c", script, store.address, str(tmp_path / "killed")]
    assert subprocess.run(program, timeout=60).returncode == -9
    assert len(list((tmp_path / "killed" / STATE / "parts").iterdir())) == 1
    run(store, tmp_path / "killed", "hf")
    assert content(tmp_path / "killed") == content(tmp_path / "uninterrupted")


@pytest.mark.parametrize("form", FORMATS)
def test_partial_export_is_completed_later(store: Store, tmp_path: Path, form: str) -> None:
    growing, _ = make_dataset(tmp_path / "set", [0, 1, 3])
    with pytest.raises(UserError, match=r"it has 3 of 5 shards.*--partial"):
        run(growing, tmp_path / "grown", form)
    assert not (tmp_path / "grown").exists()
    summary = run(growing, tmp_path / "grown", form, partial=True)
    assert (summary.train + summary.val, summary.complete) == (15, False)
    make_dataset(tmp_path / "set", [2, 4])
    assert run(growing, tmp_path / "grown", form).complete
    run(store, tmp_path / "uninterrupted", form)
    assert content(tmp_path / "grown") == content(tmp_path / "uninterrupted")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("lost", [(3,), (0, 1, 2, 4)])  # shard 3 has no sample of the validation split
def test_samples_that_the_dataset_lost_leave_the_export(lost: tuple[int, ...], form: str, tmp_path: Path) -> None:
    shrinking, _ = make_dataset(tmp_path / "set")
    run(shrinking, tmp_path / "export", form)
    (tmp_path / "export/notes.txt").write_text("mine")
    for name in (*shrinking.list("receipts"), *shrinking.list("train")):
        if any(f"{number:06d}" in name for number in lost):
            (tmp_path / "set" / name).unlink()
    run(shrinking, tmp_path / "export", form, partial=True)
    (tmp_path / "export/notes.txt").unlink()
    run(make_dataset(tmp_path / "smaller", set(range(SHARDS)) - set(lost))[0], tmp_path / "new", form, partial=True)
    assert content(tmp_path / "export") == content(tmp_path / "new")


@pytest.mark.parametrize("form", FORMATS)
def test_export_can_be_read_while_shards_are_added(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after the process is killed: `latest.json` may name the export of a night that is continued."""
    growing, to = make_dataset(tmp_path / "set", [0, 2])[0], tmp_path / "out"
    run(growing, to, form, partial=True)

    def states() -> dict[str, tuple[int, bytes]]:
        files = (path for path in to.rglob("*") if path.is_file() and STATE not in path.parts)
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = states()
    make_dataset(tmp_path / "set", [1])
    with monkeypatch.context() as patch:
        for kind in (CocoFormat, VocFormat, YoloFormat, HuggingFaceFormat):
            patch.setattr(kind, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(growing, to, form, partial=True)
    assert before.items() <= states().items()
    run(growing, to, form, partial=True)
    run(make_dataset(tmp_path / "set2", [0, 1, 2])[0], tmp_path / "uninterrupted", form, partial=True)
    assert content(to) == content(tmp_path / "uninterrupted")


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("form", ["coco", "voc"])
def test_lists_do_not_name_files_that_are_deleted(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the process is killed in between."""
    store, _ = make_dataset(tmp_path / "set")
    run(store, tmp_path / "out", form)
    store.delete("receipts/000001.json")
    lists = list[str]()

    def killed(*_: object) -> None:
        files = (path for path in (tmp_path / "out").rglob("*") if path.suffix in (".json", ".txt"))
        lists.extend(path.read_text() for path in files if path.parent.name in ("annotations", "Main"))
        raise KeyboardInterrupt

    monkeypatch.setattr(f"factory.export.{form}.delete_other_samples", killed)
    with pytest.raises(KeyboardInterrupt):
        run(store, tmp_path / "out", form, partial=True)
    lost = f"{SHARD_SIZE:09d}"
    assert lists
    assert lost not in next(text for text in lists if f"{SHARD_SIZE - 1:09d}" in text)


def test_finished_export_is_not_rewritten(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path, "coco")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.j*")}
    run(store, tmp_path, "coco")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.j*")} == before


def test_at_most_one_shard_is_in_memory(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive, max_alive = list[Any](), 0

    def counted(*arguments: Any) -> ExportSample:
        nonlocal max_alive
        sample = ExportSample(*arguments)
        alive.append(weakref.ref(sample))
        max_alive = max(max_alive, sum(reference() is not None for reference in alive))
        return sample

    monkeypatch.setattr(export_run, "ExportSample", counted)
    for form in FORMATS:
        run(store, tmp_path / form, form)
    assert len(alive) == 4 * SHARD_SIZE * SHARDS
    assert max_alive <= SHARD_SIZE


@pytest.mark.parametrize(
    ("number", "message", "code"),
    [
        (errno.ENOSPC, "no space left for", exit_codes.TRY_AGAIN),
        (errno.EDQUOT, "no space left for", exit_codes.TRY_AGAIN),
        (errno.EACCES, "cannot be written", exit_codes.BAD_INPUT),
    ],
)
def test_errors_of_the_file_system_are_clear(number: int, message: str, code: int, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=f"{message}.*; (free some space|give another folder)") as raised,
        translated_errors(tmp_path),
    ):
        raise OSError(number, os.strerror(number))
    assert raised.value.exit_code == code


def test_truncated_records_of_an_unfinished_export_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is corrupt .*; delete .* and export again"), translated_errors(tmp_path):
        json.loads("{")


@pytest.mark.parametrize("form", FORMATS)
def test_files_that_were_deleted_are_written_again(store: Store, tmp_path: Path, form: str) -> None:
    run(store, tmp_path, form)
    whole = content(tmp_path)
    for name in {name.rpartition("/")[0]: name for name in sorted(whole) if not name.startswith(STATE)}.values():
        (tmp_path / name).unlink()
        run(store, tmp_path, form)
        assert content(tmp_path) == whole, name
    for path in tmp_path.iterdir():  # as `rm -r export/*` does, which leaves the state
        if path.name != STATE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run(store, tmp_path, form)
    assert content(tmp_path) == whole


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_deleted_folder_of_an_empty_split_is_no_error(store: Store, tmp_path: Path, form: str) -> None:
    run(store, tmp_path, form, val=0)
    for name in ("annotations", "val", "images/val", "labels/val", "data.yaml"):
        path = tmp_path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    run(store, tmp_path, form, val=0)
    assert (tmp_path / ("data.yaml" if form == "yolo" else "annotations/instances_train.json")).exists()
