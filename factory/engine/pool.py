"""The pool of generating actors: asked for, loading, ready, lost; and what each is working on."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from factory.engine.job import Job
from factory.engine.worker import METHODS_AT_ONCE, DetectorWorker, ShardWorker

SHARDS_AT_ONCE = 2
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


@dataclass
class Member:
    """One actor. `since` is when its oldest shard became the one that it works on."""

    handle: Any
    loading: Any
    ready: bool = False
    where: dict[str, str] = field(default_factory=dict)
    shards: dict[int, Any] = field(default_factory=dict)
    since: float = 0.0
    counts: dict[int, tuple[int, dict[str, int]]] = field(default_factory=dict)
    asked: Any = None


class Pool:
    """Actors of one kind. One that is lost is replaced, after a pause that grows while nothing gets done."""

    def __init__(self, job: Job, threads: int, gpus: float, detectors: int, gpus_per_detector: float) -> None:
        import ray

        self._ray: Any = ray
        self._job, self._gpus, self._threads = job, gpus, threads
        self.members: list[Member] = []
        self.lost = 0
        self._pause, self._not_before = 0.0, 0.0
        self._detectors = [self._ask_for_detector(gpus_per_detector) for _ in range(detectors)]

    def grow_to(self, wanted: int) -> None:
        """Ask for actors; those that find no place stay pending, which is what an autoscaler looks at."""
        if time.monotonic() >= self._not_before:
            while len(self.members) < wanted:
                self.members.append(self._ask())

    def shrink_to(self, wanted: int) -> None:
        """Give up actors that have nothing to do: the ones that are not ready first."""
        idle = sorted((member for member in self.members if not member.shards), key=lambda member: member.ready)
        for member in idle[: max(0, len(self.members) - wanted)]:
            self._forget(member)

    def lose(self, member: Member) -> list[int]:
        """Take out an actor that is gone or must go; returns the shards that it had."""
        self.lost += 1
        self._pause = min(max(_FIRST_PAUSE, self._pause * 2), _LONGEST_PAUSE)
        self._not_before = time.monotonic() + self._pause
        self._forget(member)
        return list(member.shards)

    def progressed(self) -> None:
        """Something got done, so losses before are no pattern."""
        self._pause = 0.0

    def give(self, member: Member, shard: int) -> None:
        """Send a shard to a ready actor."""
        if not member.shards:
            member.since = time.monotonic()
        member.shards[shard] = member.handle.produce.remote(shard)

    def took(self, member: Member, shard: int) -> None:
        """The actor is through with a shard, well or badly."""
        member.shards.pop(shard)
        member.counts.pop(shard, None)
        member.since = time.monotonic()

    def free(self, queued: int) -> list[Member]:
        """Ready actors in the order in which to give them work: idle ones, then, if there is plenty, a second shard.

        There is plenty where one shard for each actor would be left for others, those that still load included: the
        last shards wait in the queue for whoever is free first.
        """
        ready = [member for member in self.members if member.ready]
        idle = [member for member in ready if not member.shards]
        if queued - len(idle) - (len(self.members) - len(ready)) < len(ready):
            return idle
        return idle + [member for member in ready if len(member.shards) < SHARDS_AT_ONCE]

    def close(self) -> None:
        """End all actors."""
        for member in list(self.members):
            self._forget(member)
        for handle in self._detectors:
            self._ray.kill(handle)

    def _ask(self) -> Member:
        options = {"num_cpus": 1, "num_gpus": self._gpus} if self._gpus else {"num_cpus": self._threads}
        actor = self._ray.remote(**options, max_restarts=0, max_concurrency=METHODS_AT_ONCE)(ShardWorker)
        handle = actor.options(scheduling_strategy="SPREAD").remote(self._job, device(self._gpus), self._detectors)
        return Member(handle, handle.load.remote())

    def _ask_for_detector(self, gpus: float) -> Any:
        actor = self._ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=-1)(DetectorWorker)
        return actor.remote(self._job, device(gpus))

    def _forget(self, member: Member) -> None:
        self.members.remove(member)
        self._ray.kill(member.handle)


def device(gpus: float) -> str:
    """The device of an actor that has so many GPUs; Ray shows it no others."""
    return "cuda" if gpus else "cpu"


def references(members: Sequence[Member]) -> dict[Any, tuple[Member, int | None]]:
    """All that is awaited: reference -> (actor, shard; None for loading)."""
    awaited: dict[Any, tuple[Member, int | None]] = {}
    for member in members:
        if not member.ready:
            awaited[member.loading] = (member, None)
        for shard, reference in member.shards.items():
            awaited[reference] = (member, shard)
    return awaited
