"""Metrics of a run, exported through Ray to Prometheus; docs/monitoring.md describes them.

Metrics are for monitoring only: receipts determine what is finished. A metric that cannot be recorded is dropped, so
that monitoring never fails a run. Ray adds the prefix `ray_` to every name, and its agent on each node serves them.
"""

import sys
import threading
from dataclasses import dataclass
from typing import Any, Literal

_lock = threading.Lock()
_instruments: dict[str, Any] = {}


@dataclass(frozen=True)
class Metric:
    """A metric of ray.util.metrics, created when it is first recorded. Every metric has the label `dataset`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def add(self, value: float, dataset: str, **labels: str) -> None:
        """Add to a counter; zero is allowed and has no effect."""
        if value > 0:
            self._record("inc", value, dataset, labels)

    def set(self, value: float, dataset: str, **labels: str) -> None:
        """Set a gauge. Ray drops a gauge that is not set again within 20 seconds."""
        self._record("set", value, dataset, labels)

    def observe(self, value: float, dataset: str, **labels: str) -> None:
        """Add a value to a histogram."""
        self._record("observe", value, dataset, labels)

    def _record(self, method: str, value: float, dataset: str, labels: dict[str, str]) -> None:
        if "ray" not in sys.modules:  # this process is not part of a cluster; importing Ray takes a second
            return
        try:
            getattr(self._instrument(), method)(value, {"dataset": dataset, **labels})
        except Exception:  # any error of Ray: a metric must never fail a run
            return

    def _instrument(self) -> Any:
        with _lock:
            if self.name not in _instruments:
                from ray.util import metrics

                arguments: dict[str, Any] = {"description": self.description, "tag_keys": ("dataset", *self.labels)}
                if self.buckets:
                    arguments["boundaries"] = list(self.buckets)
                _instruments[self.name] = getattr(metrics, self.kind.capitalize())(self.name, **arguments)
            return _instruments[self.name]


# Recorded by the workers, which lose the last ten seconds when they are killed at the end of a run.
COMMIT_SECONDS = Metric(
    "factory_commit_seconds",
    "histogram",
    "Seconds to write a shard to the store, including retries.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600),
)
BYTES = Metric("factory_committed_bytes_total", "counter", "Bytes of committed shards, with their manifests.")
CONFLICTS = Metric(
    "factory_conflicts_total",
    "counter",
    "Existing files whose bytes differ from those that a worker generated from the same plan.",
)
STORE_RETRIES = Metric(
    "factory_store_retries_total", "counter", "Requests to the store that failed temporarily and were repeated."
)

# Recorded by the driver, whose last values are exact.
SAMPLES = Metric(
    "factory_samples_total",
    "counter",
    "Attempts by result: accepted or rejected; a shard that is generated again counts once.",
    ("result",),
)
REJECTIONS = Metric("factory_rejections_total", "counter", "Rejected attempts by reason.", ("reason",))
EXHAUSTED = Metric("factory_exhausted_samples_total", "counter", "Samples that were rejected in every attempt.")
STAGE_SECONDS = Metric(
    "factory_stage_seconds_total", "counter", "Seconds of work in each stage of finished shards.", ("stage",)
)
SHARDS = Metric("factory_shards_total", "counter", "Shards by result: committed, requeued or quarantined.", ("result",))
LOST_WORKERS = Metric("factory_lost_workers_total", "counter", "Workers that were lost, failed to start or hung.")
QUEUE_DEPTH = Metric("factory_queue_depth", "gauge", "Shards that are not assigned to a worker.")
SHARDS_LEFT = Metric("factory_shards_left", "gauge", "Shards of this run that are neither committed nor quarantined.")
WORKERS = Metric("factory_workers", "gauge", "Generating workers by state: ready or pending.", ("state",))
STORE_WAITING = Metric(
    "factory_store_waiting", "gauge", "1 while the run, or one of its workers, waits for a store that does not respond."
)
LEASE_EPOCH = Metric(
    "factory_lease_epoch",
    "gauge",
    "1 for the first driver of a dataset; each driver that takes over from one that did not stop cleanly adds 1.",
)
LAST_COMMIT = Metric(
    "factory_last_commit_timestamp_seconds", "gauge", "Unix time of the last commit; until then, the start of the run."
)
LAST_SUCCESS = Metric(
    "factory_last_success_timestamp_seconds",
    "gauge",
    "Unix time at which a run ended as planned: complete, or at its limit.",
)
