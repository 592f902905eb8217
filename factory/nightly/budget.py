"""The budget of a night: when its generation ends before the dataset is complete."""

import datetime
from collections.abc import Callable
from zoneinfo import ZoneInfo

from factory import exit_codes
from factory.dataset.progress_file import read_progress
from factory.dataset.storage import Store
from factory.engine.state import Limit, State
from factory.nightly.clock import next_time
from factory.nightly.config import Budget
from factory.nightly.record import Night, Period


def now() -> datetime.datetime:
    """The current time in UTC."""
    return datetime.datetime.now(datetime.UTC)


def first_period(night: Night | None) -> Period:
    """The budget period of a night that has not started to generate.

    A run that a scheduler repeats after a temporary failure or an interruption continues the period of the first run;
    otherwise it could continue for a day after `until`. After any other failure, somebody has corrected an error, so a
    new period starts.
    """
    repeated = night is not None and (night.state == "interrupted" or night.exit_code == exit_codes.TRY_AGAIN)
    return night.period if night is not None and repeated else Period(started=now())


def deadline(budget: Budget | None, period: Period, zone: ZoneInfo) -> datetime.datetime | None:
    """When `hours` or `until` is reached; None if neither is set.

    Hours are elapsed hours, regardless of changes to daylight saving time.
    """
    ends = []
    if budget is not None and budget.hours is not None:
        ends.append(period.started + datetime.timedelta(hours=budget.hours))
    if budget is not None and budget.until is not None:
        ends.append(next_time(period.started, budget.until, zone))
    return min(ends, default=None)


def limit_of(
    budget: Budget | None, period: Period, zone: ZoneInfo, clock: Callable[[], datetime.datetime] = now
) -> Limit:
    """The limit of a run. The GPU time of earlier runs in the same budget period counts."""
    if budget is None:
        return Limit()
    end = deadline(budget, period, zone)
    gpu_seconds = None if budget.gpu_hours is None else budget.gpu_hours * 3600 - period.gpu_seconds

    def reached(state: State) -> bool:
        return (end is not None and clock() >= end) or (gpu_seconds is not None and state.gpu_seconds >= gpu_seconds)

    return Limit(reached, budget.grace)


def with_lost_usage(night: Night, dataset: Store) -> Night:
    """The record with the usage of a run that was killed before it could record it, from its last progress report.

    Another command may have worked on the dataset since; its report does not count.
    """
    progress = {} if night.counted else read_progress(dataset)
    if night.counted or progress.get("driver") != night.driver:
        return night
    try:
        return with_usage(
            night, float(progress["seconds"]), float(progress["gpu_seconds"]), float(progress["worker_seconds"])
        )
    except (ValueError, TypeError, KeyError):
        return night


def with_usage(night: Night, seconds: float, gpu_seconds: float, worker_seconds: float) -> Night:
    """The record with the usage of one run added, in seconds."""
    gpu_hours, price = night.gpu_hours + gpu_seconds / 3600, night.price_per_gpu_hour
    return night.changed(
        counted=True,
        cost=None if price is None else round(gpu_hours * price, 2),
        seconds=with_seconds(night, "generate", seconds),
        gpu_hours=round(gpu_hours, 4),
        worker_hours=round(night.worker_hours + worker_seconds / 3600, 4),
        period=night.period.model_copy(update={"gpu_seconds": night.period.gpu_seconds + gpu_seconds}),
    )


def with_seconds(night: Night, step: str, seconds: float) -> dict[str, float]:
    """The seconds of the night by step, with those of one more step added."""
    return {**night.seconds, step: round(night.seconds.get(step, 0.0) + seconds, 1)}
