"""Dates and budgets across midnight and changes of daylight saving time."""

import datetime
from zoneinfo import ZoneInfo

import pytest

from factory.engine.state import State
from factory.errors import UserError
from factory.nightly.budget import deadline, limit_of
from factory.nightly.clock import next_time, parse_date, scheduled_date
from factory.nightly.config import Budget
from factory.nightly.record import Period

BERLIN = ZoneInfo("Europe/Berlin")


def utc(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text + "+00:00")


@pytest.mark.parametrize(
    ("now", "starts", "date"),
    [
        ("2026-11-25T21:00", "22:00", "2026-11-25"),
        ("2026-11-25T20:59", "22:00", "2026-11-24"),
        ("2026-11-26T04:00", "22:00", "2026-11-25"),
        ("2026-11-25T23:30", "00:00", "2026-11-26"),
        ("2026-11-25T22:30", "00:00", "2026-11-25"),
        # 02:00 to 03:00 happens twice: at 02:10 for the second time, the start at 02:30 was 40 minutes ago.
        ("2026-10-25T00:10", "02:30", "2026-10-24"),
        ("2026-10-25T00:30", "02:30", "2026-10-25"),
        ("2026-10-25T01:10", "02:30", "2026-10-25"),
        # It is skipped: 03:00 is the first time of day after 02:30.
        ("2026-03-29T00:59", "02:30", "2026-03-28"),
        ("2026-03-29T01:00", "02:30", "2026-03-29"),
    ],
)
def test_date_is_that_of_the_last_scheduled_start(now: str, starts: str, date: str) -> None:
    assert scheduled_date(utc(now), starts, BERLIN).isoformat() == date


def test_date_option_takes_dates_and_timestamps() -> None:
    now = utc("2026-11-25T22:59")
    assert parse_date("2026-11-25", BERLIN, now) == datetime.date(2026, 11, 25)
    assert parse_date("2026-11-25T23:30:00Z", BERLIN, now) == datetime.date(2026, 11, 26)
    for text in ("yesterday", "2026-11-31", "25.11.2026", "2026-11-25T22:00:00", "9999-12-31T23:59:59-23:00", ""):
        with pytest.raises(UserError, match="--date must be a date such as 2026-11-25"):
            parse_date(text, BERLIN, now)


def test_mistyped_year_is_rejected_because_its_night_would_remain_the_latest() -> None:
    with pytest.raises(UserError, match=r"must not be after tomorrow, 2026-11-26, in .* got '2062-11-25'"):
        parse_date("2062-11-25", BERLIN, utc("2026-11-25T22:59"))
    assert parse_date("2026-11-27", BERLIN, utc("2026-11-25T23:00")) == datetime.date(2026, 11, 27)


@pytest.mark.parametrize(
    ("after", "clock", "expected"),
    [
        ("2026-11-25T21:00", "06:00", "2026-11-26T05:00"),
        ("2026-11-26T00:30", "06:00", "2026-11-26T05:00"),
        ("2026-11-26T05:00", "06:00", "2026-11-27T05:00"),
        # In the night to 29 March 2026, 02:00 to 03:00 is skipped; in the night to 25 October, it happens twice.
        ("2026-03-28T21:00", "06:00", "2026-03-29T04:00"),
        ("2026-03-28T21:00", "02:30", "2026-03-29T01:30"),
        ("2026-10-24T20:00", "06:00", "2026-10-25T05:00"),
        ("2026-10-24T20:00", "02:30", "2026-10-25T00:30"),
        ("2026-10-25T00:40", "02:30", "2026-10-25T01:30"),
        ("2026-10-25T01:40", "02:30", "2026-10-26T01:30"),
    ],
)
def test_next_time_of_day(after: str, clock: str, expected: str) -> None:
    assert next_time(utc(after), clock, BERLIN) == utc(expected)


@pytest.mark.parametrize("date", ["2026-03-28", "2026-10-24", "2026-11-25"])
def test_hours_of_a_budget_are_elapsed_hours(date: str) -> None:
    start = datetime.datetime.fromisoformat(f"{date}T22:00").replace(tzinfo=BERLIN)
    end = deadline(Budget(hours=6), Period(started=start.astimezone(datetime.UTC)), BERLIN)
    assert end is not None
    assert (end - start.astimezone(datetime.UTC)).total_seconds() == 6 * 3600


def test_first_limit_of_a_budget_ends_the_run() -> None:
    clock = [utc("2026-11-25T21:00")]
    period = Period(started=clock[0], gpu_seconds=1800)
    limit = limit_of(Budget(hours=9, until="06:00", gpu_hours=1.0), period, BERLIN, lambda: clock[0])
    assert limit.grace == 600
    assert not limit.reached(State(1, gpu_seconds=1799))
    assert limit.reached(State(1, gpu_seconds=1800)), "half an hour was used by an earlier run of the night"
    clock[0] = utc("2026-11-26T04:59")
    assert not limit.reached(State(1))
    clock[0] = utc("2026-11-26T05:00")
    assert limit.reached(State(1))
    assert not limit_of(None, period, BERLIN).reached(State(1, gpu_seconds=1e9))
