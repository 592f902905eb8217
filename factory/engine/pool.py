"""The pool of generating actors: asked for, loading, ready, lost; and what each is working on."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from factory.engine import environment
from factory.engine.capacity import Share
from factory.engine.interface import Job
from factory.engine.worker import METHODS_AT_ONCE, DetectorWorker, ShardWorker

SHARDS_AT_ONCE = 2
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_DETECTOR_RETRIES = 3


@dataclass
class Worker:
    """One actor. `since` is when its oldest shard became the one that it works on, `alive` its last sign of progress.

    `started` is answered as soon as its process runs, `loading` when its models are loaded; an actor that waits for
    room in the cluster has answered neither.
    """

    handle: Any
    started: Any
    loading: Any
    share: Share = field(default_factory=lambda: Share(1))
    is_detector: bool = False
    ready: bool = False
    alone: bool = False
    where: dict[str, str] = field(default_factory=dict)
    shards: dict[int, Any] = field(default_factory=dict)
    since: float = 0.0
    alive: float = 0.0
    counts: dict[int, tuple[int, dict[str, int]]] = field(default_factory=dict)
    asked: Any = None


class Pool:
    """Actors of one kind. One that is lost while it loads is replaced after a pause that grows with each such loss."""

    def __init__(self, job: Job, share: Share, detectors: int = 0, gpus_per_detector: float = 0.0) -> None:
        """`share` is what an actor asks for. The workers of the detector pool are asked for at once, so come first."""
        import ray

        self._ray: Any = ray
        self._job, self._share = job, share
        self._environment = environment.of_the_driver()
        self.workers: list[Worker] = []
        self._pause, self._not_before = 0.0, 0.0
        self.detectors = [self._ask_for_detector(gpus_per_detector) for _ in range(detectors)]

    def use(self, share: Share) -> None:
        """Ask for another share from now on; actors of another kind of device end as soon as they have no shard."""
        self._share = share
        for worker in [one for one in self.workers if not one.shards and self._is_outdated(one)]:
            self._forget(worker)

    def grow_to(self, wanted: int) -> None:
        """Ask for actors; those that find no place stay pending, which is what an autoscaler looks at."""
        if time.monotonic() >= self._not_before:
            current = sum(1 for worker in self.workers if not self._is_outdated(worker))
            for _ in range(wanted - current):
                self.workers.append(self._ask())

    def shrink_to(self, wanted: int) -> None:
        """Give up actors that have nothing to do: the ones that are not ready first."""
        idle = sorted((worker for worker in self.workers if not worker.shards), key=lambda worker: worker.ready)
        for worker in idle[: max(0, len(self.workers) - wanted)]:
            self._forget(worker)

    def fail(self, worker: Worker) -> None:
        """Take out an actor that is gone or must go."""
        if not worker.ready:
            self._pause = min(max(_FIRST_PAUSE, self._pause * 2), _LONGEST_PAUSE)
            self._not_before = time.monotonic() + self._pause
        self._forget(worker)

    def progressed(self) -> None:
        """Something got done, so losses before are no pattern."""
        self._pause = 0.0

    def submit(self, worker: Worker, shard: int, alone: bool = False) -> None:
        """Send a shard to a ready actor; `alone` keeps it from getting a second one beside it."""
        if not worker.shards:
            worker.since = worker.alive = time.monotonic()
        worker.alone = alone
        worker.shards[shard] = worker.handle.produce.remote(shard)

    def complete(self, worker: Worker, shard: int) -> None:
        """The actor is through with a shard, well or badly."""
        worker.shards.pop(shard)
        worker.counts.pop(shard, None)
        worker.since = worker.alive = time.monotonic()
        worker.alone = False

    def free(self, queued: int) -> list[Worker]:
        """Ready actors in the order in which to give them work: idle ones, then, if there is plenty, a second shard.

        There is plenty where one shard for each actor would be left for others, those that still load included: the
        last shards wait in the queue for whoever is free first.
        """
        ready = [worker for worker in self.workers if worker.ready and not self._is_outdated(worker)]
        idle = [worker for worker in ready if not worker.shards]
        if queued - len(idle) - (len(self.workers) - len(ready)) < len(ready):
            return idle
        return idle + [worker for worker in ready if len(worker.shards) < SHARDS_AT_ONCE and not worker.alone]

    def close(self) -> None:
        """End all actors."""
        for worker in [*self.workers, *self.detectors]:
            self._forget(worker)

    def abandon(self) -> None:
        """Forget all actors without ending them: the cluster is gone, and would be waited for."""
        self.workers.clear()
        self.detectors.clear()

    def _is_outdated(self, worker: Worker) -> bool:
        return worker.share.gpus != self._share.gpus

    def _ask(self) -> Worker:
        share = self._share
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "memory": share.memory or None}
        actor = self._ray.remote(**options, max_restarts=0, max_concurrency=METHODS_AT_ONCE)(ShardWorker)
        detectors = [one.handle for one in self.detectors]
        handle = actor.options(scheduling_strategy="SPREAD").remote(
            self._job, device(share.gpus), detectors, self._environment
        )
        return Worker(handle, handle.where.remote(), handle.load.remote(), share)

    def _ask_for_detector(self, gpus: float) -> Worker:
        options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": _DETECTOR_RETRIES}
        handle = self._ray.remote(**options)(DetectorWorker).remote(self._job, device(gpus), self._environment)
        return Worker(handle, handle.where.remote(), handle.load.remote(), Share(1, gpus), is_detector=True)

    def _forget(self, worker: Worker) -> None:
        if worker in self.workers:
            self.workers.remove(worker)
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(worker.handle)


def device(gpus: float) -> str:
    """The device of an actor that has so many GPUs; Ray shows it no others."""
    return "cuda" if gpus else "cpu"


def references(workers: Sequence[Worker]) -> dict[Any, tuple[Worker, int | None]]:
    """All that is awaited: reference -> (actor, shard; None for starting and loading)."""
    awaited: dict[Any, tuple[Worker, int | None]] = {}
    for worker in workers:
        if not worker.ready:
            awaited[worker.loading] = (worker, None)
            if not worker.where:
                awaited[worker.started] = (worker, None)
        for shard, reference in worker.shards.items():
            awaited[reference] = (worker, shard)
    return awaited
