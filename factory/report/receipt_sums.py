"""Sums over the receipts of a dataset: attempts, rejections, time by step and by worker."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from factory.dataset.receipts import Receipt
from factory.report.selection import Lowest, rank_of

_SHARDS_PER_REASON = 16
_WORKERS_SHOWN = 200
STEPS = ("generate", "ground", "judge", "filter", "encode")
"""The steps whose seconds receipts record, in order; receipts of other versions may have others."""


@dataclass
class WorkerSums:
    """The work of one worker process."""

    shards: int = 0
    samples: int = 0
    attempts: int = 0
    seconds: float = 0.0


@dataclass
class ReceiptSums:
    """Adds up receipts. `with_reason` holds a random selection of shards for each rejection reason."""

    accepted: int = 0
    attempts: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    exhausted: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    versions: Counter[str] = field(default_factory=Counter)
    workers: dict[tuple[str, str, str], WorkerSums] = field(default_factory=dict)
    with_reason: dict[str, Lowest[int]] = field(default_factory=dict)
    finished: list[datetime] = field(default_factory=list)
    """First and last time at which a shard was finished; receipts of earlier versions do not record it."""

    def add(self, receipt: Receipt) -> None:
        """Add a receipt."""
        self.accepted += receipt.accepted
        self.attempts += receipt.attempts
        self.rejected.update(receipt.rejected)
        self.exhausted += receipt.short
        seconds = _seconds(receipt.seconds)
        for step, value in seconds.items():
            self.seconds[step] = self.seconds.get(step, 0.0) + value
        self.versions.update([str(receipt.versions.get("dataset-factory", "unknown"))])
        host, device, process = (str(receipt.worker.get(name, "")) for name in ("host", "device", "pid"))
        worker = self.workers.setdefault((host, device, process), WorkerSums())
        worker.shards += 1
        worker.samples += receipt.accepted
        worker.attempts += receipt.attempts
        worker.seconds += sum(seconds.values())
        for reason in receipt.rejected:
            selection = self.with_reason.setdefault(reason, Lowest(_SHARDS_PER_REASON))
            selection.add(rank_of(str(receipt.shard)), str(receipt.shard), receipt.shard)
        self._add_time(receipt.worker.get("finished"))

    def _add_time(self, text: object) -> None:
        try:
            time = datetime.fromisoformat(str(text))
        except ValueError:
            return
        if time.tzinfo is not None:
            times = [*self.finished, time]
            self.finished = [min(times), max(times)]

    def shards_with_rejections(self) -> list[int]:
        """The selected shards of all reasons."""
        return sorted({shard for selection in self.with_reason.values() for shard in selection.items()})

    def to_dict(self) -> dict[str, Any]:
        """Time by step and by worker. A rate is the number of samples per second of work, not of waiting."""
        known = [*(step for step in STEPS if step in self.seconds), *sorted(set(self.seconds) - set(STEPS))]
        total = sum(self.seconds.values())
        steps = [
            {
                "step": step,
                "seconds": round(self.seconds[step], 3),
                "share": round(self.seconds[step] / total, 6) if total else 0.0,
                "per_attempt": round(self.seconds[step] / self.attempts, 6) if self.attempts else 0.0,
            }
            for step in known
        ]
        first, last = (self.finished[0], self.finished[-1]) if self.finished else (None, None)
        return {
            "steps": steps,
            "seconds": round(total, 3),
            "samples_per_second": _rate(self.accepted, total),
            "workers": self._workers(),
            "workers_total": len(self.workers),
            "first_finished": first.isoformat() if first else None,
            "last_finished": last.isoformat() if last else None,
            "versions": dict(sorted(self.versions.items())),
        }

    def _workers(self) -> list[dict[str, Any]]:
        workers = [
            {
                "host": host,
                "device": device,
                "process": process,
                **vars(worker),
                "seconds": round(worker.seconds, 3),
                "samples_per_second": _rate(worker.samples, worker.seconds),
            }
            for (host, device, process), worker in self.workers.items()
        ]
        workers.sort(key=lambda worker: (-worker["samples"], worker["host"], worker["device"], worker["process"]))
        return workers[:_WORKERS_SHOWN]


def _seconds(recorded: Mapping[str, Any]) -> dict[str, float]:
    """The valid entries of a receipt's `seconds`."""
    return {
        str(step): float(value)
        for step, value in recorded.items()
        if isinstance(value, (int, float)) and 0 <= value < 1e9
    }


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 4) if seconds else None
