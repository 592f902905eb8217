"""Deletions of nights that are interrupted, or meet a driver that works on the night."""

import datetime
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from factory.dataset import lease
from factory.dataset.lease import LEASE, Lease, leased
from factory.dataset.storage import Store
from factory.errors import LeaseHeldError, UserError
from factory.nightly import retention
from factory.nightly.latest import LATEST, latest_night, update_latest
from factory.nightly.record import list_nights
from factory.nightly.retention import delete_night, expired_nights
from tests.nightly.conftest import put_night, raising
from tests.support.bucket import Bucket

OLD, NEW = datetime.date(2026, 11, 10), datetime.date(2026, 11, 11)
BEHIND = "2026-01-01T00:00:00+00:00"


@pytest.fixture(params=["folder", "s3://b/nights"])
def root(request: pytest.FixtureRequest, bucket: Bucket, tmp_path: Path) -> Store:
    root = Store(str(tmp_path / "nights") if request.param == "folder" else request.param)
    for date in (OLD, NEW):
        for number in range(3):
            root.put(f"{date}/dataset/receipts/{number:06d}.json", b"{}")
        put_night(root, date)
    return root


def test_half_deleted_dataset_is_never_the_latest(root: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its recipe, nobody takes it for a dataset with fewer shards."""

    monkeypatch.setattr(retention, "_remove", raising(OSError(5, "Input/output error")))
    monkeypatch.setattr(Store, "delete_all", raising(UserError("access denied")))
    with pytest.raises(UserError):
        delete_night(root, OLD)
    assert root.list(f"{OLD}/dataset/receipts")
    damaged = {"shards": 3, "of": 3, "damaged": [1], "at": "2026-11-25T03:00:00Z"}
    put_night(root, NEW, "failed", verified=damaged)
    night = list_nights(root)[NEW]
    assert night is not None
    update_latest(root, night)
    assert latest_night(root) is None
    assert root.get(LATEST) is None


def test_driver_that_starts_during_the_deletion_is_rejected(root: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    held = list[str]()
    dataset = Store(f"{root.address}/{OLD}/dataset")
    delete = Store.delete

    def start(store: Store, name: str) -> None:
        if name.endswith("night.json"):
            with pytest.raises(LeaseHeldError), leased(dataset):
                pass
            held.append(name)
        delete(store, name)

    def remove(path: Path) -> None:
        start(dataset, "night.json")

    monkeypatch.setattr(Store, "delete", start)
    monkeypatch.setattr(retention, "_remove", remove)
    delete_night(root, OLD)
    assert held
    assert root.folders() == [str(NEW)]


def test_deletion_that_was_stopped_deletes_nothing_of_a_restarted_night(
    root: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver took the night over after the recipe was deleted, and generated it again."""
    delete, remove = Store.delete, retention._remove

    def take_over() -> None:
        root.put(f"{OLD}/dataset/{LEASE}", Lease("abc", "node-7", 12, "other/1", BEHIND, BEHIND).to_json())
        monkeypatch.setattr(lease, "_clock", lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + lease.EXPIRES + 1)

    def stopped(store: Store, name: str) -> None:
        delete(store, name)
        take_over()

    def stopped_in_folder(path: Path) -> None:
        remove(path)
        take_over()

    monkeypatch.setattr(Store, "delete", stopped)
    monkeypatch.setattr(retention, "_remove", stopped_in_folder)
    with pytest.raises(LeaseHeldError):
        delete_night(root, OLD)
    assert root.get(f"{OLD}/night.json") is not None
    assert root.folder is not None or len(root.list(f"{OLD}/dataset/receipts")) == 3


def test_driver_whose_clock_is_behind_keeps_its_night(root: Store) -> None:
    """By its time stamp, its last heartbeat was long ago."""
    alive = Lease("abc", "node-7", 12, "other-boot/pid:[1]/5", BEHIND, BEHIND)
    name = f"{OLD}/dataset/{LEASE}"
    root.put(name, alive.to_json())
    assert expired_nights(root, 1) == [OLD]
    threading.Timer(0.3, lambda: root.put(name, replace(alive, beat=1).to_json())).start()
    before = root.list(str(OLD))
    with pytest.raises(LeaseHeldError, match="process 12 on node-7"):
        delete_night(root, OLD)
    assert root.list(str(OLD)).keys() == before.keys()
