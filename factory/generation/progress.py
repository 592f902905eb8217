"""The progress of a run in numbers, for the live view, plain lines and progress.json."""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from factory.config.plan import Plan
from factory.dataset.totals import Totals
from factory.engine.state import State

_WINDOW = 60.0
ERRORS_SHOWN = 5
"""Errors in progress.json and in the live view."""


@dataclass(frozen=True)
class Snapshot:
    """The progress of a run at one moment. The names of the fields are the keys of progress.json.

    That file also has `driver`, the holder of the lease.

    Attributes:
        status: `starting`, `running`, `waiting`, `done` or `incomplete`; in progress.json also `finishing`,
            `interrupted` and `failed`, and never `starting`.
        accepted: Samples of the dataset so far, including those of earlier runs.
        n: Samples of the complete dataset.
        shards_done: Finished shards, including those of earlier runs.
        shards: Shards of the complete dataset.
        per_second: Accepted samples per second over the last minute.
        seconds: Duration of this run.
        seconds_left: Estimate of the time for the rest of this run, regardless of a budget; None if it is unknown.
        workers: Workers that are ready.
        pending_workers: Workers that wait for resources or load their models.
        rejected: Rejected attempts of this run by reason.
        lost_workers: Workers that were lost in this run.
        gpu_seconds: Seconds for which workers ran in this run, times the GPUs that each of them reserved.
        worker_seconds: Seconds for which workers ran in this run.
        requeued: Shards that were requeued in this run.
        quarantined: Numbers of the shards that failed repeatedly in this run.
        errors: The last errors of this run; progress.json has the last five.
        errors_total: The number of errors of this run.
        updated: Time of the snapshot in UTC, in ISO format.
    """

    status: str
    accepted: int
    n: int
    shards_done: int
    shards: int
    per_second: float
    seconds: float
    seconds_left: float | None
    workers: int
    pending_workers: int
    rejected: dict[str, int]
    lost_workers: int
    gpu_seconds: float
    worker_seconds: float
    requeued: int
    quarantined: list[int]
    errors: list[str]
    errors_total: int
    updated: str

    def to_dict(self) -> dict[str, Any]:
        """The content of progress.json."""
        return asdict(self) | {"errors": self.errors[-ERRORS_SHOWN:]}


class Tracker:
    """Converts states of the scheduler to snapshots."""

    def __init__(self, plan: Plan, shards: Iterable[int], before: Totals | None = None) -> None:
        """`shards` are those of this run, `before` are the totals of the shards that earlier runs finished."""
        self._plan, self._before = plan, before or Totals()
        self._planned = self._samples_of(shards)
        self._start = time.monotonic()
        self._recent: deque[tuple[float, int, int]] = deque([(self._start, 0, 0)])

    def snapshot(self, state: State, status: str = "running") -> Snapshot:
        """A snapshot of the current state."""
        now = time.monotonic()
        accepted, rejected = state.so_far()
        speed, handled_speed = self._speeds(now, accepted, accepted + state.exhausted)
        left = max(0, self._planned - self._samples_of(state.quarantined) - accepted - state.exhausted)
        return Snapshot(
            status=status,
            accepted=self._before.accepted + accepted,
            n=self._plan.recipe.n,
            shards_done=self._before.shards + state.shards_done,
            shards=len(self._plan),
            per_second=round(speed, 3),
            seconds=round(now - self._start, 1),
            seconds_left=round(left / handled_speed, 1) if handled_speed else None,
            workers=state.workers,
            pending_workers=state.pending_workers,
            rejected=dict(sorted(rejected.items())),
            lost_workers=state.lost,
            gpu_seconds=round(state.gpu_seconds, 1),
            worker_seconds=round(state.worker_seconds, 1),
            requeued=state.requeued,
            quarantined=list(state.quarantined),
            errors=list(state.errors),
            errors_total=state.errors_total,
            updated=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _samples_of(self, shards: Iterable[int]) -> int:
        """How many samples are planned for some shards."""
        return sum(stop - start for start, stop in map(self._plan.bounds, shards))

    def _speeds(self, now: float, accepted: int, handled: int) -> tuple[float, float]:
        """Accepted and handled (accepted or skipped) samples per second over the last minute.

        They are never negative, although lost shards lower the counts.
        """
        if now - self._recent[-1][0] >= 1:
            self._recent.append((now, accepted, handled))
        while len(self._recent) > 1 and now - self._recent[0][0] > _WINDOW:
            self._recent.popleft()
        since, accepted_before, handled_before = self._recent[0]
        if now <= since:
            return 0.0, 0.0
        elapsed = now - since
        return max(0.0, (accepted - accepted_before) / elapsed), max(0.0, (handled - handled_before) / elapsed)
