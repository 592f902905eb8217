"""Dates and times of day in a time zone. All instants are aware datetimes in UTC."""

import contextlib
import datetime
import re
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from factory.errors import UserError


def zone_of(name: str) -> ZoneInfo:
    """The time zone with an IANA name; raises ValueError if it is unknown."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("is not a time zone; give an IANA name such as Europe/Berlin or UTC") from None


def parse_clock(text: str) -> datetime.time:
    """A time of day such as 06:00; raises ValueError for anything else."""
    match = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", text)
    if match is None:
        raise ValueError("must be a time of day from 00:00 to 23:59, such as 06:00")
    return datetime.time(int(match[1]), int(match[2]))


def scheduled_date(now: datetime.datetime, starts: str, zone: ZoneInfo) -> datetime.date:
    """The local date of the last scheduled start at or before `now`.

    On a day that repeats an hour, the start is in the first of the two hours. On a day that skips the start, the first
    time after the skipped hour counts as after the start.
    """
    local, start = now.astimezone(zone), parse_clock(starts)
    before = local.time() < start and now < datetime.datetime.combine(local.date(), start, zone)
    return local.date() - datetime.timedelta(days=before)


def parse_date(text: str, zone: ZoneInfo, now: datetime.datetime) -> datetime.date:
    """A date such as 2026-11-25, or the local date of a timestamp with an offset, such as 2026-11-25T21:00:00Z.

    Raises UserError for anything else, and for a date after tomorrow, whose night would remain the latest for a long
    time.
    """
    date = None
    with contextlib.suppress(ValueError, OverflowError):
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            date = datetime.date.fromisoformat(text)
        else:
            moment = datetime.datetime.fromisoformat(text)
            date = moment.astimezone(zone).date() if moment.tzinfo is not None else None
    if date is None:
        raise UserError(f"--date must be a date such as 2026-11-25 or a timestamp with an offset, got {text!r}.")
    tomorrow = now.astimezone(zone).date() + datetime.timedelta(days=1)
    if date > tomorrow:
        raise UserError(f"--date must not be after tomorrow, {tomorrow}, in the time zone of the nights; got {text!r}.")
    return date


def next_time(after: datetime.datetime, clock: str, zone: ZoneInfo) -> datetime.datetime:
    """The first instant after `after` at which clocks in the zone show this time of day.

    On a day that skips this time, it is the instant at which the clock would have shown it without the change. On a day
    that repeats it, both instants count.
    """
    time, day = parse_clock(clock), after.astimezone(zone).date()
    moments = (
        datetime.datetime.combine(day + datetime.timedelta(days=days), time.replace(fold=fold), zone)
        for days in (0, 1, 2)
        for fold in (0, 1)
    )
    instants = sorted(moment.astimezone(datetime.UTC) for moment in moments if _counts(moment))
    return next(instant for instant in instants if instant > after)


def _counts(moment: datetime.datetime) -> bool:
    """Whether a local time is an instant of its own: the second reading of a skipped time is not."""
    shown = moment.astimezone(datetime.UTC).astimezone(moment.tzinfo)
    return moment.fold == 0 or shown.replace(tzinfo=None) == moment.replace(tzinfo=None)
