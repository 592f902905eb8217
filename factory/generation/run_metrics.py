"""Publishes the state of a run as metrics: counters when they change, and gauges before Ray drops them."""

import os
import threading
import time

from factory import metrics
from factory.dataset.lease import HeldLease
from factory.engine.state import State
from factory.errors import UserError

INTERVAL = 5.0
"""Seconds between two publications. Ray drops a gauge that was not set for 20 s."""
LINGER = "FACTORY_METRICS_LINGER"
_MAX_LINGER = 600.0


class RunMetrics:
    """The metrics of one driver. A thread publishes them; it only reads the state of the scheduler."""

    def __init__(self, dataset: str, held: HeldLease, state: State) -> None:
        self._dataset, self._held, self._state = dataset, held, state
        self._last_commit, self._last_success = time.time(), 0.0
        self._published: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self, complete: bool) -> bool:
        """Publish the final state; after a complete run, continue for `linger()` seconds or until interrupted.

        Returns whether it was interrupted.
        """
        self._stop.set()
        self._thread.join(1.0)
        if complete:
            self._last_success = time.time()
        self._publish()
        end = time.monotonic() + (linger() if complete else 0.0)
        try:
            while (remaining := end - time.monotonic()) > 0:
                time.sleep(min(remaining, INTERVAL))
                self._publish()
        except KeyboardInterrupt:
            return True
        return False

    def _run(self) -> None:
        self._publish()
        while not self._stop.wait(INTERVAL):
            self._publish()

    def _publish(self) -> None:
        state, dataset = self._state, self._dataset
        committed = self._increase("committed", state.shards_done)
        if committed:
            self._last_commit = time.time()
        metrics.SHARDS.add(committed, dataset, result="committed")
        metrics.SHARDS.add(self._increase("requeued", state.requeued), dataset, result="requeued")
        metrics.SHARDS.add(self._increase("quarantined", len(state.quarantined)), dataset, result="quarantined")
        metrics.LOST_WORKERS.add(self._increase("lost_workers", state.lost), dataset)
        self._publish_samples()
        metrics.QUEUE_DEPTH.set(state.queued, dataset)
        metrics.SHARDS_LEFT.set(state.shards - state.shards_done - len(state.quarantined), dataset)
        metrics.WORKERS.set(state.workers, dataset, state="ready")
        metrics.WORKERS.set(state.pending_workers, dataset, state="pending")
        metrics.STORE_WAITING.set(1 if state.waiting or state.waiting_workers else 0, dataset)
        metrics.LEASE_EPOCH.set(self._held.epoch, dataset)
        metrics.LAST_COMMIT.set(self._last_commit, dataset)
        if self._last_success:
            metrics.LAST_SUCCESS.set(self._last_success, dataset)

    def _publish_samples(self) -> None:
        """Publish the counts of finished shards and of those in progress."""
        state, dataset = self._state, self._dataset
        accepted, rejected = state.so_far()
        metrics.SAMPLES.add(self._increase("accepted", accepted), dataset, result="accepted")
        metrics.SAMPLES.add(self._increase("rejected", rejected.total()), dataset, result="rejected")
        for reason, count in rejected.items():
            metrics.REJECTIONS.add(self._increase(f"rejected {reason}", count), dataset, reason=reason)
        metrics.EXHAUSTED.add(self._increase("exhausted", state.exhausted), dataset)
        for stage, seconds in list(state.seconds.items()):
            metrics.STAGE_SECONDS.add(self._increase(f"stage {stage}", seconds), dataset, stage=stage)

    def _increase(self, name: str, total: float) -> float:
        """By how much a total exceeds what was published; a lost shard lowers the counts of shards in progress."""
        before = self._published.get(name, 0)
        self._published[name] = max(before, total)
        return self._published[name] - before


def linger() -> float:
    """Seconds for which a finished run still serves its metrics, so that they are scraped once more; 0 by default.

    UserError if FACTORY_METRICS_LINGER is not a number of seconds up to ten minutes.
    """
    text = os.environ.get(LINGER) or "0"
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MAX_LINGER:
        raise UserError(f"{LINGER} must be a number of seconds from 0 to {_MAX_LINGER:.0f}, got {text!r}.")
    return seconds
