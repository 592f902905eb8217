"""Exports that are stopped anywhere go on to the same bytes."""

import itertools
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

from factory.dataset.storage import Store
from factory.errors import UserError
from factory.export import run as export_run
from factory.export.folder import STATE
from factory.export.interface import ExportSample
from factory.export.run import Export, Options
from tests.support.export_sets import (
    FORMATS,
    SHARD_SIZE,
    SHARDS,
    VAL,
    content,
    make_set,
    run,
)


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_is_stopped_at_any_sample_goes_on_to_the_same_bytes(
    store: Store, tmp_path: Path, form: str
) -> None:
    run(store, tmp_path / "calm", form)

    for stop_at in range(1, SHARD_SIZE * SHARDS + 1, 3):

        def stop(done: int, stop_at: int = stop_at) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Export(store, tmp_path / "disturbed", Options(form, VAL)).run(stop)
    run(store, tmp_path / "disturbed", form)
    assert content(tmp_path / "disturbed") == content(tmp_path / "calm")


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_is_stopped_at_any_rename_goes_on_to_the_same_bytes(
    store: Store, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renames are where files appear: of units, of the end, and of what an earlier end over fewer shards left."""
    run(store, tmp_path / "calm", form)
    run(make_set(tmp_path / "set", [0, 1, 3])[0], tmp_path / "begun", form, partial=True)
    for stop in itertools.count():
        shutil.copytree(tmp_path / "begun", tmp_path / str(stop))
        renames = iter([os.replace] * stop)

        def sudden(*names: Any, renames: Any = renames) -> None:
            rename = next(renames, None)
            if rename is None:
                raise KeyboardInterrupt
            rename(*names)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", sudden)
            try:
                run(store, tmp_path / str(stop), form)
                break
            except KeyboardInterrupt:
                patch.undo()
        run(store, tmp_path / str(stop), form)
        assert content(tmp_path / str(stop)) == content(tmp_path / "calm")
    assert stop > 4


def test_a_killed_process_leaves_an_export_that_goes_on(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path / "calm", "hf")
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from factory.export import run\nfrom factory.dataset.storage import Store\n"
        "from factory.export.hf import HuggingFaceFormat\n"
        "run.FORMATS['hf'] = lambda subject, polygons: HuggingFaceFormat(subject, 140_000)\n"
        f"job = run.Export(Store(sys.argv[1]), Path(sys.argv[2]), run.Options('hf', {VAL}))\n"
        "job.run(lambda done: os.kill(os.getpid(), 9) if done == 13 else None)\n"
    )
    program = [sys.executable, "-c", script, store.address, str(tmp_path / "killed")]
    assert subprocess.run(program, timeout=60).returncode == -9
    assert len(list((tmp_path / "killed" / STATE / "parts").iterdir())) == 1
    run(store, tmp_path / "killed", "hf")
    assert content(tmp_path / "killed") == content(tmp_path / "calm")


@pytest.mark.parametrize("form", FORMATS)
def test_an_unfinished_set_is_exported_if_asked_for_and_completed_later(
    store: Store, tmp_path: Path, form: str
) -> None:
    growing, _ = make_set(tmp_path / "set", [0, 1, 3])
    with pytest.raises(UserError, match=r"3 of 5 shards are there.*--partial"):
        run(growing, tmp_path / "grown", form)
    assert not (tmp_path / "grown").exists()
    summary = run(growing, tmp_path / "grown", form, partial=True)
    assert (summary.train + summary.val, summary.complete) == (15, False)
    make_set(tmp_path / "set", [2, 4])
    assert run(growing, tmp_path / "grown", form).complete
    run(store, tmp_path / "calm", form)
    assert content(tmp_path / "grown") == content(tmp_path / "calm")


def test_a_finished_export_is_left_as_it_is(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path, "coco")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.j*")}
    run(store, tmp_path, "coco")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.j*")} == before


def test_the_samples_of_one_shard_at_most_are_in_memory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, most = list[Any](), 0

    def counted(*arguments: Any) -> ExportSample:
        nonlocal most
        sample = ExportSample(*arguments)
        alive.append(weakref.ref(sample))
        most = max(most, sum(one() is not None for one in alive))
        return sample

    monkeypatch.setattr(export_run, "ExportSample", counted)
    for form in FORMATS:
        run(store, tmp_path / form, form)
    assert len(alive) == 4 * SHARD_SIZE * SHARDS
    assert most <= SHARD_SIZE
