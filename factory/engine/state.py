"""The state of a run, and who is informed about it."""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from factory.engine.interface import Done

_ERRORS_KEPT = 50


@dataclass
class State:
    """How far a run is; the views and progress.json show it."""

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
    """Called by the scheduler, in the driver: `tick` at least every half second.

    `logs` gets all that the workers wrote, when one was lost, when a shard failed, and at the end.
    """

    tick: Callable[[State], None] = lambda state: None
    quarantine: Callable[[int, str], None] = lambda shard, text: None
    finished: Callable[[int], None] = lambda shard: None
    logs: Callable[[str], None] = lambda text: None
