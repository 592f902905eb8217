"""The scheduler: gives shards to actors, and takes what comes back, until all are done."""

import re
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from factory.engine.cluster import resources
from factory.engine.job import Done
from factory.engine.pool import Member, Pool, references
from factory.errors import StoreUnavailableError, UserError

TRIES = 3
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ERRORS_KEPT = 50
_TICK = 0.5
_ASK_EVERY = 2.0
_LOOK_AROUND_EVERY = 5.0
_SHORTEST_DEADLINE = 600.0
_DEADLINE_FACTOR = 10.0


@dataclass
class State:
    """What the run has come to; the views and progress.json show it."""

    shards: int
    shards_done: int = 0
    accepted: int = 0
    attempts: int = 0
    short: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    quarantined: list[int] = field(default_factory=list)
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=_ERRORS_KEPT))
    lost: int = 0
    requeued: int = 0
    workers: int = 0
    pending_workers: int = 0
    under_way: dict[int, tuple[int, dict[str, int]]] = field(default_factory=dict)
    waiting: str = ""
    """Why the run stands still, set by the listener: the store does not answer. Nothing is given out meanwhile."""

    def add(self, done: Done) -> None:
        """Count a shard that is done; sums only, so that a long run needs no more memory than a short one."""
        self.shards_done += 1
        self.accepted += done.accepted
        self.attempts += done.attempts
        self.short += done.short
        self.rejected.update(done.rejected)
        for step, seconds in done.seconds.items():
            self.seconds[step] = self.seconds.get(step, 0.0) + seconds


@dataclass(frozen=True)
class Listener:
    """Called by the scheduler, in the driver: `tick` at least every half second."""

    tick: Callable[[State], None] = lambda state: None
    quarantine: Callable[[int, str], None] = lambda shard, text: None
    finished: Callable[[int], None] = lambda shard: None


class Scheduler:
    """Runs shards on a pool. A lost actor's shards go back to the queue without limit; errors are tried thrice."""

    def __init__(
        self,
        pool: Pool,
        shards: Sequence[int],
        workers: int | None,
        per_worker: tuple[float, float],
        deadline: float | None,
        listener: Listener,
    ) -> None:
        """`per_worker` is (CPUs, GPUs) of an actor; where `workers` is None, as many as the cluster has room for."""
        self._pool, self._listener = pool, listener
        self._queue = deque(shards)
        self._tries: dict[int, int] = {}
        self._workers, self._per_worker, self._deadline = workers, per_worker, deadline
        self._slowest = 0.0
        self._asked = self._looked = 0.0
        self._fitting = 1
        self.state = State(len(shards))

    def run(self) -> State:
        """Returns when every shard is done or quarantined; UserError from a worker ends it at once."""
        import ray

        while self._queue or any(member.shards for member in self._pool.members):
            self._size_pool()
            for member in self._pool.free(len(self._queue)):
                if self._queue and not self.state.waiting:
                    self._pool.give(member, self._queue.popleft())
            awaited = references(self._pool.members)
            if awaited:
                ready, rest = ray.wait(list(awaited), num_returns=1, timeout=_TICK)
                if rest:
                    ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
                for reference in ready:
                    self._take(reference, *awaited[reference])
            else:
                time.sleep(_TICK)
            self._kill_late()
            self._ask_progress()
            self._tell()
        return self.state

    def _size_pool(self) -> None:
        if time.monotonic() - self._looked > _LOOK_AROUND_EVERY:
            self._looked = time.monotonic()
            cpus, gpus = resources()
            mine_cpus, mine_gpus = self._per_worker
            self._fitting = max(1, int(gpus / mine_gpus) if mine_gpus else int(cpus / mine_cpus))
        busy = sum(1 for member in self._pool.members if member.shards)
        wanted = min(self._workers or self._fitting, busy + len(self._queue))
        self._pool.grow_to(wanted)
        self._pool.shrink_to(wanted)

    def _take(self, reference: Any, member: Member, shard: int | None) -> None:
        import ray

        if member not in self._pool.members:
            return
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._failed(member, shard, error)
        except ray.exceptions.RayError as error:
            self._lost(member, error)
        else:
            if shard is None:
                member.ready, member.where = True, result
                return
            self._slowest = max(self._slowest, time.monotonic() - member.since)
            self._pool.took(member, shard)
            self._pool.progressed()
            self.state.add(result)
            self._listener.finished(shard)

    def _failed(self, member: Member, shard: int | None, error: Any) -> None:
        """An exception in the worker's code: bad input ends the run, a loss elsewhere is no fault of the shard."""
        import ray

        cause = error.cause
        if isinstance(cause, StoreUnavailableError) and shard is not None:
            # The shard was made, but could not be written for as long as the store's patience lasts: not its fault.
            self.state.errors.append(_line(cause))
            self._pool.took(member, shard)
            self._requeue([shard])
            return
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, ray.exceptions.RayError):
            if shard is None:
                self._lost(member, cause)
            else:
                self._pool.took(member, shard)
                self._requeue([shard])
            return
        if shard is None:
            raise error
        self._pool.took(member, shard)
        self._try_again(shard, _COLOURS.sub("", str(error)))
        if self._per_worker[1]:
            self._requeue(self._pool.lose(member))

    def _lost(self, member: Member, error: Exception) -> None:
        if getattr(error, "actor_init_failed", False):
            raise UserError(
                f"the workers cannot start: {_line(error)}. Every machine of a cluster needs this version of factory."
            ) from error
        self.state.lost += 1
        self.state.errors.append(f"lost a worker on {member.where.get('host', 'an unknown host')}: {_line(error)}")
        self._requeue(self._pool.lose(member))

    def _try_again(self, shard: int, text: str) -> None:
        self._tries[shard] = self._tries.get(shard, 0) + 1
        self.state.errors.append(f"shard {shard}, try {self._tries[shard]} of {TRIES}: {_line(text)}")
        if self._tries[shard] < TRIES:
            self._queue.append(shard)
        else:
            self.state.quarantined.append(shard)
            self._listener.quarantine(shard, text)

    def _requeue(self, shards: list[int]) -> None:
        self.state.requeued += len(shards)
        self._queue.extendleft(reversed(shards))

    def _kill_late(self) -> None:
        """A shard over its deadline: the actor is killed, the late shard has failed once, its neighbour is requeued."""
        if self.state.waiting:
            for member in self._pool.members:
                member.since = time.monotonic()
            return
        deadline = self._deadline or max(_SHORTEST_DEADLINE, self._slowest * _DEADLINE_FACTOR)
        if self._deadline is None and self.state.shards_done < TRIES:
            return
        for member in list(self._pool.members):
            if member.shards and time.monotonic() - member.since > deadline:
                late, *others = self._pool.lose(member)
                self._requeue(others)
                self._try_again(late, f"it was not done after {deadline:.0f} s; its worker was killed")

    def _ask_progress(self) -> None:
        """Collect the answers to the last questions and, every now and then, ask again; nobody is waited for."""
        import ray

        for member in self._pool.members:
            if member.asked is not None and ray.wait([member.asked], timeout=0)[0]:
                try:
                    member.counts = ray.get(member.asked)
                except ray.exceptions.RayError:
                    member.counts = {}
                member.asked = None
        if time.monotonic() - self._asked > _ASK_EVERY:
            self._asked = time.monotonic()
            for member in self._pool.members:
                if member.ready and member.shards and member.asked is None:
                    member.asked = member.handle.progress.remote()

    def _tell(self) -> None:
        state, members = self.state, self._pool.members
        state.workers = sum(1 for member in members if member.ready)
        state.pending_workers = len(members) - state.workers
        state.under_way = {
            shard: member.counts[shard] for member in members for shard in member.shards if shard in member.counts
        }
        self._listener.tick(state)


def _line(error: object) -> str:
    """The last line of an error's text that says something."""
    text = str(error) if not isinstance(error, BaseException) else "".join(traceback.format_exception_only(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
