"""latest.json names the newest night whose dataset can be used now."""

import datetime
from pathlib import Path
from typing import Any

import pytest

from factory.dataset.storage import Store
from factory.nightly.latest import latest_night, update_latest
from factory.nightly.record import NightFile
from tests.nightly.conftest import put_night, record

GROW = {"mode": "grow", "dataset": "dataset"}


@pytest.fixture
def root(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "nights"))


def day(number: int) -> datetime.date:
    return datetime.date(2026, 11, number)


def verified(hour: int, *damaged: int) -> dict[str, Any]:
    return {"verified": {"shards": 6, "of": 6, "damaged": damaged, "at": f"2026-11-25T{hour:02}:00:00Z"}}


def updated(root: Store, number: int) -> int | None:
    """The day of latest.json after the night of a day wrote its record."""
    night = NightFile(root, day(number)).load()
    assert night is not None
    update_latest(root, night)
    latest = latest_night(root)
    return None if latest is None else latest.date.day


def test_newest_good_night_is_the_latest(root: Store) -> None:
    for number, state in ((10, "complete"), (11, "partial"), (12, "failed")):
        put_night(root, day(number), state)
    assert [updated(root, number) for number in (10, 11, 12)] == [11, 11, 11]


def test_night_without_its_folder_or_its_dataset_is_not_the_latest(root: Store) -> None:
    """Deleted by hand, or by an interrupted deletion, which leaves the record to the last."""
    put_night(root, day(10))
    root.put("2026-11-11/night.json", record(day(11), "complete"))
    root.put("latest.json", record(day(12), "complete"))
    assert updated(root, 10) == 10


@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
def test_continued_night_stays_the_latest_unless_it_is_damaged(state: str, root: Store) -> None:
    put_night(root, day(10))
    put_night(root, day(11), state, **verified(3))
    root.put("latest.json", record(day(11), "partial", samples=4))
    assert updated(root, 10) == 11
    latest = latest_night(root)
    assert latest is not None
    assert (latest.state, latest.samples) == ("partial", 4), "the record of its last success"
    put_night(root, day(11), state, **verified(4, 2))
    assert updated(root, 11) == 10


def test_damage_of_a_shared_dataset_concerns_all_its_nights_until_one_finds_it_sound(root: Store) -> None:
    put_night(root, day(10), **GROW, **verified(1))
    root.put("dataset/recipe.yaml", b"n: 12")
    assert updated(root, 10) == 10
    put_night(root, day(11), "failed", **GROW, **verified(2, 4))
    assert updated(root, 11) is None
    assert root.get("latest.json") is None
    put_night(root, day(12), **GROW, **verified(3))
    put_night(root, day(11), "interrupted", **GROW, **verified(2, 4))
    assert updated(root, 11) == 12, "it was repaired since, although the damaged night has not been finished"
