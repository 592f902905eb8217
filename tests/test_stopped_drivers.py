"""Drivers that were stopped while another one worked on the dataset: they destroy nothing when they continue."""

import json
import os
import time
from pathlib import Path

import pytest

from factory.config.plan import Plan
from factory.dataset import lease
from factory.dataset.description import write_description
from factory.dataset.lease import LEASE, Lease, leased
from factory.dataset.receipt_index import IndexEntry
from factory.dataset.receipts import receipt_name, tar_name
from factory.dataset.repair import repair
from factory.dataset.storage import ConflictError, Store
from factory.dataset.stored_recipe import init_or_resume
from factory.dataset.verify import verify
from factory.engine.state import State
from factory.errors import LeaseHeldError, UserError
from factory.generation import run
from factory.generation.progress import Tracker
from factory.generation.reporter import Reporter
from factory.generation.run import run_prepared
from factory.nightly.exports import upload
from tests.support.bucket import Bucket, serving
from tests.support.export_datasets import FORMATS, SHARDS, commit_shard, make_dataset
from tests.support.export_datasets import run as run_export

OTHER = Lease("abc", "node-7", 12, "other-boot/pid:[1]/5", "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00")


def take_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had been stopped for longer than a lease lasts, and another driver had come."""
    store.put(LEASE, OTHER.to_json())
    monkeypatch.setattr(lease, "_clock", lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + lease.EXPIRES + 1)


def test_repair_that_was_stopped_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, recipe = make_dataset(tmp_path, shards=(0, 2, 3, 4))
    commit_shard(store, recipe, 1)
    store.delete(receipt_name(1))
    (tmp_path / tar_name(2)).write_bytes(b"damaged")
    with leased(store) as held:
        report = verify(store)
        assert (set(report.damaged), set(report.orphans.values())) == ({2}, {1})
        take_over(store, monkeypatch)
        for name in (receipt_name(2), tar_name(2)):
            store.delete(name)
        commit_shard(store, recipe, 1)
        commit_shard(store, recipe, 2)
        with pytest.raises(LeaseHeldError):
            repair(store, report, held.confirm)
    after = verify(store)
    assert (after.damaged, after.missing, after.shards) == ({}, [], SHARDS)


def test_repair_that_was_stopped_between_deletions_keeps_the_new_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, recipe = make_dataset(tmp_path)
    (tmp_path / tar_name(2)).write_bytes(b"damaged")
    delete = Store.delete
    with leased(store) as held:
        report = verify(store)

        def stopped(self: Store, name: str) -> None:
            monkeypatch.setattr(Store, "delete", delete)
            for own in (receipt_name(2), tar_name(2)):
                self.delete(own)
            take_over(self, monkeypatch)
            commit_shard(self, recipe, 2)

        monkeypatch.setattr(Store, "delete", stopped)
        with pytest.raises(LeaseHeldError):
            repair(store, report, held.confirm)
    after = verify(store)
    assert (after.damaged, after.shards) == ({}, SHARDS)


def test_reset_that_was_stopped_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset without shards is reset for another recipe while another driver starts to generate it."""
    store, recipe = make_dataset(tmp_path, shards=())
    store.create(tar_name(0), b"of a worker that was killed")
    delete = Store.delete
    with leased(store) as held:

        def stopped(self: Store, name: str) -> None:
            monkeypatch.setattr(Store, "delete", delete)
            self.delete(name)
            take_over(self, monkeypatch)
            commit_shard(self, recipe, 0)

        monkeypatch.setattr(Store, "delete", stopped)
        with pytest.raises(LeaseHeldError):
            init_or_resume(store, recipe.model_copy(update={"seed": 1}), confirm=held.confirm)
    after = verify(store)
    assert (after.damaged, after.shards) == ({}, 1)


def test_repair_keeps_a_shard_that_a_worker_completed_after_the_check(tmp_path: Path) -> None:
    """Its driver was killed, and Ray ended the worker a moment later."""
    store, recipe = make_dataset(tmp_path, shards=(0, 2, 3, 4))
    commit_shard(store, recipe, 1)
    receipt = store.get(receipt_name(1))
    store.delete(receipt_name(1))
    report = verify(store)
    assert set(report.orphans.values()) == {1}
    store.create(receipt_name(1), receipt or b"")
    assert repair(store, report).orphans == ()
    after = verify(store)
    assert (after.missing, after.orphans, after.damaged) == ([], {}, {})


def test_run_that_was_stopped_does_not_replace_a_newer_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, recipe = make_dataset(tmp_path)
    finished_entries = run.finished_entries

    def stopped(store: Store, plan: Plan, save: bool) -> dict[int, IndexEntry]:
        store.put("dataset.json", b"of the extended dataset")
        take_over(store, monkeypatch)
        return finished_entries(store, plan, save)

    monkeypatch.setattr(run, "finished_entries", stopped)
    with leased(store) as held, pytest.raises(LeaseHeldError):
        run_prepared(recipe, store, held)
    assert store.get("dataset.json") == b"of the extended dataset"


def test_upload_that_was_stopped_does_not_replace_a_newer_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "coco/train").mkdir(parents=True)
    (tmp_path / "coco/annotations").mkdir()
    for name in ("annotations/instances_train.json", "train/000000000.jpg", "train/000000001.jpg"):
        (tmp_path / "coco" / name).write_text("old")
    with serving(Bucket()) as bucket:
        for name, value in bucket.environment().items():
            monkeypatch.setenv(name, value)
        root = Store("s3://b/nights")
        with leased(root) as held:
            newer = {f"coco/{name}": b"new" for name in ("annotations/instances_train.json", "train/000000002.jpg")}
            for name, data in newer.items():
                root.put(name, data)
            take_over(root, monkeypatch)
            with pytest.raises(LeaseHeldError):
                upload(tmp_path / "coco", root, "coco", held.confirm)
            assert {name: root.get(name) for name in root.list("coco")} == newer


@pytest.mark.parametrize("form", FORMATS)
def test_upload_that_is_killed_leaves_no_file_that_names_missing_samples(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor an image of YOLO without its labels, which would have no objects."""
    run_export(make_dataset(tmp_path / "set")[0], tmp_path / "export", form)
    order = list[str]()
    monkeypatch.setattr(Store, "put_file", lambda store, name, path: order.append(name))
    upload(tmp_path / "export", Store(str(tmp_path / "root")), form)
    images = [k for k, name in enumerate(order) if name.endswith((".jpg", ".parquet"))]
    labels = [k for k, name in enumerate(order) if "/labels/" in name]
    lists = [k for k, name in enumerate(order) if "/ImageSets/" in name or name.endswith((".json", ".yaml", ".md"))]
    assert max(labels, default=-1) < min(images) <= max(images) < min(lists)


def test_commit_beside_the_receipt_of_another_run_is_a_conflict(tmp_path: Path) -> None:
    """A worker of a driver that another one has replaced writes its receipt late."""
    store, recipe = make_dataset(tmp_path / "set", shards=[])
    other, other_recipe = make_dataset(tmp_path / "other", shards=[], seed=7)
    commit_shard(other, other_recipe, 0)
    store.create(receipt_name(0), other.get(receipt_name(0)) or b"")
    with pytest.raises(ConflictError, match="a worker of another run wrote it"):
        commit_shard(store, recipe, 0)


def test_commit_beside_a_receipt_of_another_manifest_is_a_conflict(tmp_path: Path) -> None:
    """It would count as finished although `verify` finds that the manifest is damaged."""
    store, recipe = make_dataset(tmp_path, shards=[0])
    receipt = json.loads(store.get(receipt_name(0)) or b"")
    receipt["manifest"]["sha256"] = "0" * 64
    (tmp_path / receipt_name(0)).write_text(json.dumps(receipt))
    with pytest.raises(ConflictError, match="has other digests"):
        commit_shard(store, recipe, 0)


def test_receipt_of_another_recipe_is_not_counted(tmp_path: Path) -> None:
    store, recipe = make_dataset(tmp_path / "set", shards=(0, 2))
    other, other_recipe = make_dataset(tmp_path / "other", shards=(1,), seed=7)
    for name in other.list(""):
        store.create(name, other.get(name) or b"")
    with pytest.raises(
        UserError, match=rf"shard 1 is corrupt \(it names another recipe, {other_recipe.fingerprint()[:12]}\)"
    ):
        write_description(store, recipe)


def test_temporary_files_of_earlier_runs_are_deleted_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that always end early, on a disk that such files fill, would otherwise never delete them."""
    store, recipe = make_dataset(tmp_path, shards=range(2))
    abandoned = tmp_path / f"{tar_name(2)}#123"
    abandoned.write_bytes(b"of a killed worker")
    os.utime(abandoned, (time.time() - 3600, time.time() - 3600))

    def end(*arguments: object) -> State:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_run", end)
    with leased(store) as held, pytest.raises(KeyboardInterrupt):
        run_prepared(recipe, store, held)
    assert not abandoned.exists()


def test_run_ends_if_its_dataset_is_moved(tmp_path: Path) -> None:
    """Its shards would belong to no dataset."""
    store, recipe = make_dataset(tmp_path / "set", shards=())
    with leased(store) as held:
        reporter = Reporter(store, Tracker(Plan(recipe), range(SHARDS)), lambda snapshot: None, held, set())
        reporter.tick(State(SHARDS))
        (tmp_path / "set").rename(tmp_path / "moved")
        held._renew(store)
        with pytest.raises(UserError, match="was moved or deleted while it was generated; rerun the command with"):
            reporter.tick(State(SHARDS))
        reporter.close(Tracker(Plan(recipe), range(SHARDS)).snapshot(State(SHARDS)))
