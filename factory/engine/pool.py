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
class Member:
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
        self.members: list[Member] = []
        self._pause, self._not_before = 0.0, 0.0
        self.detectors = [self._ask_for_detector(gpus_per_detector) for _ in range(detectors)]

    def use(self, share: Share) -> None:
        """Ask for another share from now on; actors of another kind of device end as soon as they have no shard."""
        self._share = share
        for member in [one for one in self.members if not one.shards and self._is_outdated(one)]:
            self._forget(member)

    def grow_to(self, wanted: int) -> None:
        """Ask for actors; those that find no place stay pending, which is what an autoscaler looks at."""
        if time.monotonic() >= self._not_before:
            current = sum(1 for member in self.members if not self._is_outdated(member))
            for _ in range(wanted - current):
                self.members.append(self._ask())

    def shrink_to(self, wanted: int) -> None:
        """Give up actors that have nothing to do: the ones that are not ready first."""
        idle = sorted((member for member in self.members if not member.shards), key=lambda member: member.ready)
        for member in idle[: max(0, len(self.members) - wanted)]:
            self._forget(member)

    def lose(self, member: Member) -> None:
        """Take out an actor that is gone or must go."""
        if not member.ready:
            self._pause = min(max(_FIRST_PAUSE, self._pause * 2), _LONGEST_PAUSE)
            self._not_before = time.monotonic() + self._pause
        self._forget(member)

    def progressed(self) -> None:
        """Something got done, so losses before are no pattern."""
        self._pause = 0.0

    def give(self, member: Member, shard: int, alone: bool = False) -> None:
        """Send a shard to a ready actor; `alone` keeps it from getting a second one beside it."""
        if not member.shards:
            member.since = member.alive = time.monotonic()
        member.alone = alone
        member.shards[shard] = member.handle.produce.remote(shard)

    def took(self, member: Member, shard: int) -> None:
        """The actor is through with a shard, well or badly."""
        member.shards.pop(shard)
        member.counts.pop(shard, None)
        member.since = member.alive = time.monotonic()
        member.alone = False

    def free(self, queued: int) -> list[Member]:
        """Ready actors in the order in which to give them work: idle ones, then, if there is plenty, a second shard.

        There is plenty where one shard for each actor would be left for others, those that still load included: the
        last shards wait in the queue for whoever is free first.
        """
        ready = [member for member in self.members if member.ready and not self._is_outdated(member)]
        idle = [member for member in ready if not member.shards]
        if queued - len(idle) - (len(self.members) - len(ready)) < len(ready):
            return idle
        return idle + [member for member in ready if len(member.shards) < SHARDS_AT_ONCE and not member.alone]

    def close(self) -> None:
        """End all actors."""
        for member in [*self.members, *self.detectors]:
            self._forget(member)

    def abandon(self) -> None:
        """Forget all actors without ending them: the cluster is gone, and would be waited for."""
        self.members.clear()
        self.detectors.clear()

    def _is_outdated(self, member: Member) -> bool:
        return member.share.gpus != self._share.gpus

    def _ask(self) -> Member:
        share = self._share
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "memory": share.memory or None}
        actor = self._ray.remote(**options, max_restarts=0, max_concurrency=METHODS_AT_ONCE)(ShardWorker)
        detectors = [one.handle for one in self.detectors]
        handle = actor.options(scheduling_strategy="SPREAD").remote(
            self._job, device(share.gpus), detectors, self._environment
        )
        return Member(handle, handle.where.remote(), handle.load.remote(), share)

    def _ask_for_detector(self, gpus: float) -> Member:
        options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": _DETECTOR_RETRIES}
        handle = self._ray.remote(**options)(DetectorWorker).remote(self._job, device(gpus), self._environment)
        return Member(handle, handle.where.remote(), handle.load.remote(), Share(1, gpus), is_detector=True)

    def _forget(self, member: Member) -> None:
        if member in self.members:
            self.members.remove(member)
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(member.handle)


def device(gpus: float) -> str:
    """The device of an actor that has so many GPUs; Ray shows it no others."""
    return "cuda" if gpus else "cpu"


def references(members: Sequence[Member]) -> dict[Any, tuple[Member, int | None]]:
    """All that is awaited: reference -> (actor, shard; None for starting and loading)."""
    awaited: dict[Any, tuple[Member, int | None]] = {}
    for member in members:
        if not member.ready:
            awaited[member.loading] = (member, None)
            if not member.where:
                awaited[member.started] = (member, None)
        for shard, reference in member.shards.items():
            awaited[reference] = (member, shard)
    return awaited
