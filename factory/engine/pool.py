"""The pool of generating actors: their states (pending, loading, ready) and the shards assigned to them."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from factory.engine import environment
from factory.engine.capacity import ResourceRequest
from factory.engine.interface import Job
from factory.engine.worker import MAX_CONCURRENCY, STARTING, DetectorWorker, ShardWorker

SHARDS_PER_WORKER = 2
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_DETECTOR_RETRIES = 3


@dataclass(eq=False)  # two actors are never equal
class Worker:
    """An actor.

    `since` is the time at which it began to load its models or to generate its current shard, and `last_progress` that
    of its last progress; both move forward while its deadlines are suspended. The reference `started` resolves when the
    process runs, `loading` when the models are loaded. For an actor that waits for resources, neither has resolved.
    """

    handle: Any
    started: Any
    loading: Any
    request: ResourceRequest = field(default_factory=lambda: ResourceRequest(1))
    is_detector: bool = False
    ready: bool = False
    alone: bool = False
    where: dict[str, str] = field(default_factory=dict)
    shards: dict[int, Any] = field(default_factory=dict)
    since: float = 0.0
    last_progress: float = 0.0
    counts: dict[int, tuple[int, dict[str, int]]] = field(default_factory=dict)
    waiting: str = ""
    """Why it waits, as it last reported."""
    detector: int | None = None
    """The position of the detector worker that it called when it last reported."""
    progress_call: Any = None
    """The reference of a pending call of `progress`."""

    @property
    def name(self) -> str:
        """The actor in messages, with the host and the process by which the log file names it, if it has started."""
        kind = "a detector worker" if self.is_detector else "a worker"
        host, process = self.where.get("host"), self.where.get("pid")
        return kind + (f" on {host}" if host else "") + (f" (process {process})" if process else "")


class Pool:
    """Actors of one kind. If one is lost while loading, the next starts after a pause that grows exponentially."""

    def __init__(self, job: Job, request: ResourceRequest, detectors: int = 0, gpus_per_detector: float = 0.0) -> None:
        """`request` is what an actor requests. Detector workers are created here, so they get resources first."""
        import ray

        self._ray: Any = ray
        self._job, self._request = job, request
        self._environment = environment.of_the_driver()
        self.workers: list[Worker] = []
        self._pause, self._not_before = 0.0, 0.0
        self.detectors = [self._create_detector(gpus_per_detector) for _ in range(detectors)]

    def use(self, request: ResourceRequest) -> None:
        """Request these resources from now on; actors on another type of device end once they have no shard."""
        self._request = request
        for worker in [worker for worker in self.workers if not worker.shards and self._is_outdated(worker)]:
            self._kill(worker)

    def grow_to(self, size: int) -> None:
        """Create actors; those that do not fit stay pending, which makes an autoscaler add nodes."""
        if time.monotonic() >= self._not_before:
            current = sum(1 for worker in self.workers if not self._is_outdated(worker))
            for _ in range(size - current):
                self.workers.append(self._create())

    def shrink_to(self, size: int) -> None:
        """Kill idle actors, those that are not ready first."""
        idle = sorted((worker for worker in self.workers if not worker.shards), key=lambda worker: worker.ready)
        for worker in idle[: max(0, len(self.workers) - size)]:
            self._kill(worker)

    def fail(self, worker: Worker) -> None:
        """Remove an actor that was lost or must be replaced."""
        if not worker.ready:
            self._pause = min(max(_FIRST_PAUSE, self._pause * 2), _LONGEST_PAUSE)
            self._not_before = time.monotonic() + self._pause
        self._kill(worker)

    def restart(self, detector: Worker) -> None:
        """Kill the process of a detector worker. Ray starts it again and repeats the calls of the workers that wait."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(detector.handle, no_restart=False)

    def is_loading(self, detector: int | None) -> bool:
        """Whether this detector worker has not loaded its model yet, which has a deadline of its own."""
        return detector is not None and not self.detectors[detector].ready

    def progressed(self) -> None:
        """Reset the pause: a shard was finished, so earlier losses are not systematic."""
        self._pause = 0.0

    def submit(self, worker: Worker, shard: int, alone: bool = False) -> None:
        """Send a shard to a ready actor; with `alone`, the actor gets no second shard until this one is complete."""
        if not worker.shards:
            worker.since = worker.last_progress = time.monotonic()
        worker.alone = alone
        worker.shards[shard] = worker.handle.produce.remote(shard)

    def complete(self, worker: Worker, shard: int) -> None:
        """The actor returned a result or an error for a shard."""
        worker.shards.pop(shard)
        worker.counts.pop(shard, None)
        worker.since = worker.last_progress = time.monotonic()
        worker.alone = False

    def free(self, queued: int) -> list[Worker]:
        """Ready actors in the order in which they get work: idle ones first, then those that can take a second shard.

        A second shard is generated while the first is written. Near the end of a run, it would wait behind the first
        while another actor is idle. So second shards are given out only while the queue holds, after one shard for each
        idle and each loading actor, at least one more per ready actor.
        """
        ready = [worker for worker in self.workers if worker.ready and not self._is_outdated(worker)]
        idle = [worker for worker in ready if not worker.shards]
        loading = len(self.workers) - len(ready)
        if queued - len(idle) - loading < len(ready):
            return idle
        return idle + [worker for worker in ready if len(worker.shards) < SHARDS_PER_WORKER and not worker.alone]

    def close(self) -> None:
        """Kill all actors."""
        for worker in [*self.workers, *self.detectors]:
            self._kill(worker)

    def abandon(self) -> None:
        """Drop all actors without killing them: the cluster is gone, and the calls would block."""
        self.workers.clear()
        self.detectors.clear()

    def _is_outdated(self, worker: Worker) -> bool:
        return worker.request.gpus != self._request.gpus

    def _create(self) -> Worker:
        request = self._request
        options = {"num_cpus": request.cpus, "num_gpus": request.gpus, "memory": request.memory or None}
        actor = self._ray.remote(**options, max_restarts=0, max_concurrency=MAX_CONCURRENCY)(ShardWorker)
        detectors = [detector.handle for detector in self.detectors]
        handle = actor.options(scheduling_strategy="SPREAD").remote(
            self._job, device(request.gpus), detectors, self._environment
        )
        return Worker(handle, handle.where.remote(), handle.load.remote(), request)

    def _create_detector(self, gpus: float) -> Worker:
        options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": _DETECTOR_RETRIES}
        actor = self._ray.remote(**options, concurrency_groups={STARTING: 1})(DetectorWorker)
        handle = actor.remote(self._job, device(gpus), self._environment)
        started, loading = (
            method.options(concurrency_group=STARTING).remote() for method in (handle.where, handle.load)
        )
        return Worker(handle, started, loading, ResourceRequest(1, gpus), is_detector=True)

    def _kill(self, worker: Worker) -> None:
        if worker in self.workers:
            self.workers.remove(worker)
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(worker.handle)


def device(gpus: float) -> str:
    """The torch device of an actor with this many GPUs; Ray hides all other GPUs from it."""
    return "cuda" if gpus else "cpu"


def references(workers: Sequence[Worker]) -> dict[Any, tuple[Worker, int | None]]:
    """All pending references -> (actor, shard; None for starting and loading)."""
    awaited: dict[Any, tuple[Worker, int | None]] = {}
    for worker in workers:
        if not worker.ready:
            awaited[worker.loading] = (worker, None)
            if not worker.where:
                awaited[worker.started] = (worker, None)
        for shard, reference in worker.shards.items():
            awaited[reference] = (worker, shard)
    return awaited
