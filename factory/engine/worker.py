"""The Ray actor classes: a generating worker and a worker of the detector pool."""

import itertools
import os
import socket
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from factory.engine.environment import adopt
from factory.engine.interface import Done, Job, Producer

MAX_CONCURRENCY = 4
"""Two calls of `produce`, one generating while the other writes, and room for `progress` and `where`."""
STARTING = "starting"
"""The concurrency group in which a detector worker executes `where` and `load`, beside a call of `detect`."""


class ShardWorker:
    """Loads the models once and produces shards. Two calls of `produce` overlap: one writes while the other generates.

    All models run in one dedicated thread, because every thread that runs them would reserve memory for itself.
    """

    def __init__(self, job: Job, device: str, detectors: Sequence[Any], variables: Mapping[str, str]) -> None:
        adopt(variables)
        self._job, self._device = job, device
        self._producer: Producer | None = None
        self._detector = PooledDetector(detectors) if detectors else None
        self._models, self._lock = ThreadPoolExecutor(1, "models"), threading.Lock()
        self._counts: dict[int, tuple[int, Counter[str]]] = {}

    def where(self) -> dict[str, str]:
        """Where this worker runs; available before the models are loaded."""
        return _where(self._device)

    def load(self) -> dict[str, str]:
        """Load the models; returns where this worker runs."""
        self._producer = self._models.submit(self._job.open, self._device, self._detector).result()
        return _where(self._device)

    def produce(self, shard: int) -> Done:
        """Generate and write one shard."""
        assert self._producer is not None
        try:
            content = self._models.submit(self._generate, self._producer, shard).result()
            return self._producer.finish(shard, content)
        finally:
            with self._lock:
                self._counts.pop(shard, None)

    def progress(self) -> tuple[dict[int, tuple[int, dict[str, int]]], str, int | None]:
        """What this worker does.

        (accepted samples and rejection counts so far, for each shard in progress; why the producer waits; the detector
        of the pool that it calls).
        """
        assert self._producer is not None
        with self._lock:
            counts = {shard: (accepted, dict(reasons)) for shard, (accepted, reasons) in self._counts.items()}
        return counts, self._producer.waiting(), self._detector.called if self._detector else None

    def _generate(self, producer: Producer, shard: int) -> Any:
        self._count(shard, 0, ())
        return producer.generate(shard, lambda accepted, reasons: self._count(shard, accepted, reasons))

    def _count(self, shard: int, accepted: int, reasons: Sequence[str]) -> None:
        with self._lock:
            before, rejected = self._counts.get(shard, (0, Counter()))
            rejected.update(reasons)
            self._counts[shard] = before + accepted, rejected


class DetectorWorker:
    """A worker of the detector pool. Loading is a method call, so that an error is its result, not a failed start.

    The driver calls `load`, and the generating workers call `detect`, in any order. If `load` had to wait for a call of
    `detect` that hangs, the driver would take this worker for one that is still loading.
    """

    def __init__(self, job: Job, device: str, variables: Mapping[str, str]) -> None:
        adopt(variables)
        self._job, self._device = job, device
        self._detector: Any = None
        self._lock = threading.Lock()

    def where(self) -> dict[str, str]:
        """Where this worker runs; available before the detector is loaded."""
        return _where(self._device)

    def load(self) -> dict[str, str]:
        """Load the detector; returns where this worker runs."""
        with self._lock:
            if self._detector is None:
                self._detector = self._job.open_detector(self._device)
        return _where(self._device)

    def detect(self, images: Sequence[Any], classes: Sequence[Any] | None = None) -> Any:
        """Call the detector; loads it first, because Ray may have restarted this worker."""
        self.load()
        return self._detector.detect(images, classes)


class PooledDetector:
    """A detector that calls the workers of the pool round-robin, directly from worker to worker, not via the driver."""

    def __init__(self, workers: Sequence[Any]) -> None:
        self._workers = itertools.cycle(enumerate(workers))
        self.called: int | None = None
        """The position of the worker that is being called."""

    def detect(self, images: Sequence[Any], classes: Sequence[Any] | None = None) -> Any:
        """Call the next detector; Ray restarts a lost one and repeats the call."""
        import ray

        self.called, worker = next(self._workers)
        try:
            return ray.get(worker.detect.remote(list(images), classes))
        finally:
            self.called = None


def _where(device: str) -> dict[str, str]:
    import ray

    ip = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    return {"host": socket.gethostname(), "ip": ip, "pid": str(os.getpid()), "device": device}
