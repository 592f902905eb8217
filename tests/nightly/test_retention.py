"""`keep` deletes old nights, never the last good one, and nothing that is not a night."""

import datetime
from pathlib import Path
from typing import Any

import pytest

from factory.dataset.lease import leased
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.nightly.record import list_nights
from factory.nightly.retention import delete_night, expired_nights
from factory.nightly.run import run_night
from tests.nightly.conftest import Make, Put, put_night, record
from tests.support.bucket import Bucket, Fault


@pytest.fixture(params=["folder", "s3://b/nights", "gs://b/nights"])
def root(request: pytest.FixtureRequest, bucket: Bucket, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "nights") if request.param == "folder" else request.param)


def add(root: Store, day: int, state: str = "complete", **fields: Any) -> datetime.date:
    date = datetime.date(2026, 11, day)
    root.put(f"{date}/dataset/train/000000.tar", b"samples")
    put_night(root, date, state, **fields)
    return date


def days(dates: list[datetime.date]) -> list[int]:
    return [date.day for date in dates]


def test_all_but_the_newest_nights_expire(root: Store) -> None:
    for day in range(10, 16):
        add(root, day)
    assert days(expired_nights(root, 4)) == [10, 11]
    assert expired_nights(root, 6) == []


def test_last_good_and_last_complete_nights_never_expire(root: Store) -> None:
    for day, state in (
        (8, "complete"),
        (9, "complete"),
        (10, "partial"),
        (11, "partial"),
        (12, "failed"),
        (13, "failed"),
    ):
        add(root, day, state)
    assert days(expired_nights(root, 1)) == [8, 10, 12]
    for day in (8, 10, 12):
        delete_night(root, datetime.date(2026, 11, day))
    assert expired_nights(root, 1) == []
    assert days(list(list_nights(root))) == [9, 11, 13]


def test_night_of_latest_json_never_expires(root: Store) -> None:
    """A partial night that was continued and failed: programs still read its dataset."""
    for day, state in ((10, "complete"), (11, "failed"), (12, "failed"), (13, "failed")):
        add(root, day, state)
    root.put("latest.json", record(datetime.date(2026, 11, 11), "partial"))
    assert days(expired_nights(root, 1)) == [12]


def test_repeated_old_night_does_not_delete_itself(make: Make, generated: Put) -> None:
    """In `grow`, nothing else protects it: the lease belongs to the shared dataset."""
    context = make(recipe={"seed": 20261125}, keep={"nights": 1}, mode="grow", target=12)
    for day in (26, 27, 28):
        add(context.root, day)
    context.root.put("latest.json", record(datetime.date(2026, 11, 28), "complete"))
    outcome = run_night(generated(context))
    assert (days(list(outcome.deleted)), outcome.state) == ([26, 27], "complete")
    assert days(list(list_nights(context.root))) == [25, 28]


def test_folders_that_are_no_nights_are_never_touched(root: Store) -> None:
    add(root, 15)
    add(root, 14)
    for name in ("2026-11-01/photos/a.jpg", "2026-11-02/night.json", "2026-11-03x/night.json", "2026-13-40/night.json"):
        root.put(name, b"{}")
    root.put("2026-11-04/night.json", record(datetime.date(2026, 11, 5), "complete"))
    root.put("dataset/recipe.yaml", b"n: 1")
    assert days(expired_nights(root, 1)) == [14]
    assert list_nights(root)[datetime.date(2026, 11, 2)] is None, "listed as unreadable"


def test_night_of_an_active_driver_is_kept(root: Store) -> None:
    old, _ = add(root, 10, "running"), add(root, 11)
    with leased(Store(f"{root.address}/{old}/dataset")):
        assert expired_nights(root, 1) == []
    assert expired_nights(root, 1) == [old]


def test_deletion_removes_a_night_and_nothing_else(root: Store) -> None:
    old, _ = add(root, 10), add(root, 11)
    root.put("latest.json", b"{}")
    delete_night(root, old)
    assert root.folders() == ["2026-11-11"]
    assert set(root.list("")) >= {"2026-11-11/night.json", "2026-11-11/dataset/train/000000.tar", "latest.json"}


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    root, archive = Store(str(tmp_path / "nights")), tmp_path / "archive"
    archive.mkdir()
    (archive / "precious").write_text("1")
    old, linked, _ = add(root, 10), add(root, 9), add(root, 11)
    (tmp_path / "nights/2026-11-10/exports").symlink_to(archive)
    (tmp_path / "nights/2026-11-09").rename(tmp_path / "moved")
    (tmp_path / "nights/2026-11-09").symlink_to(tmp_path / "moved")
    assert linked not in expired_nights(root, 1)
    delete_night(root, old)
    assert (archive / "precious").exists()


def test_interrupted_deletion_is_repeated(bucket: Bucket) -> None:
    root = Store("gs://b/nights")
    old, _ = add(root, 10), add(root, 11)
    bucket.faults.append(Fault("status", r"DELETE .*night.{1,3}json", times=None, code=403))
    with pytest.raises(UserError):
        delete_night(root, old)
    bucket.faults.clear()
    assert list(root.list("2026-11-10")) == ["2026-11-10/night.json"]
    assert expired_nights(root, 1) == [old]


def test_night_deletes_old_ones_after_it_succeeded(make: Make, generated: Put) -> None:
    context = make(keep={"nights": 2})
    for day in (20, 21, 22):
        add(context.root, day)
    outcome = run_night(generated(context))
    assert (days(list(outcome.deleted)), outcome.state) == ([20, 21], "complete")
    assert days(list(list_nights(context.root))) == [22, 25]


def test_failed_deletion_does_not_fail_the_night(make: Make, generated: Put, bucket: Bucket) -> None:
    context = generated(make(root="gs://b/nights", keep={"nights": 1}))
    add(context.root, 20)
    bucket.faults.append(Fault("status", "DELETE .*11.{1,3}20.*night.{1,3}json", times=None, code=403))
    outcome = run_night(context)
    assert (outcome.exit_code, outcome.deleted) == (0, ())
    assert any("old nights could not be deleted" in text for text in context.__dict__["messages"])
