"""The state of a run, the listener that receives it, and the limit that ends it early."""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from factory.engine.interface import Done
from factory.errors import printable

_ERRORS_KEPT = 1000


@dataclass
class State:
    """The progress of a run, as shown by the live view and progress.json."""

    shards: int
    shards_done: int = 0
    accepted: int = 0
    attempts: int = 0
    exhausted: int = 0
    """Samples that were rejected in every attempt."""
    rejected: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    quarantined: list[int] = field(default_factory=list)
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=_ERRORS_KEPT))
    """The last errors, in one line each, as text that can be printed. `report` adds one."""
    errors_total: int = 0
    lost: int = 0
    requeued: int = 0
    queued: int = 0
    """Shards that are not assigned to a worker."""
    workers: int = 0
    pending_workers: int = 0
    in_progress: dict[int, tuple[int, dict[str, int]]] = field(default_factory=dict)
    gpu_seconds: float = 0.0
    """Seconds for which actors ran, multiplied by the GPUs of each actor; including loading, excluding waiting."""
    worker_seconds: float = 0.0
    """The same for generating workers instead of GPUs."""
    limited: bool = False
    """Whether the run ended at its limit with shards left."""
    interrupted: bool = False
    """Whether a signal arrived with the last shard or later; one that arrives earlier raises KeyboardInterrupt."""
    waiting: str = ""
    """Why the run is paused (the store does not respond), set by the listener. No shard is submitted meanwhile."""
    waiting_workers: str = ""
    """Which workers wait, and why: the store may respond to the driver and not to them."""

    def so_far(self) -> tuple[int, Counter[str]]:
        """(accepted samples, rejected attempts by reason), including those of shards in progress."""
        in_progress = list(self.in_progress.values())  # a copy, because other threads call this
        rejected = Counter(self.rejected)
        for _, reasons in in_progress:
            rejected.update(reasons)
        return self.accepted + sum(count for count, _ in in_progress), rejected

    def report(self, error: str) -> None:
        """Add an error for the log and progress.json."""
        self.errors.append(printable(error))
        self.errors_total += 1

    def add(self, done: Done) -> None:
        """Add the counts of a finished shard; only sums are stored, so memory does not grow with the run."""
        self.shards_done += 1
        self.accepted += done.accepted
        self.attempts += done.attempts
        self.exhausted += done.exhausted
        self.rejected.update(done.rejected)
        for step, seconds in done.seconds.items():
            self.seconds[step] = self.seconds.get(step, 0.0) + seconds


@dataclass(frozen=True)
class Limit:
    """Ends a run before all shards are done. `reached` is called in the driver, at least every half second.

    From then on no shard is submitted, and shards in progress may finish within `grace` seconds.
    """

    reached: Callable[[State], bool] = lambda state: False
    grace: float = 0.0


@dataclass(frozen=True)
class Listener:
    """Callbacks of the scheduler, called in the driver; `tick` at least every half second.

    `logs` receives the captured output of all workers every minute, after a loss, after a failed shard, and at the end.
    """

    tick: Callable[[State], None] = lambda state: None
    quarantine: Callable[[int, str], None] = lambda shard, text: None
    finished: Callable[[int], None] = lambda shard: None
    logs: Callable[[str], None] = lambda text: None
