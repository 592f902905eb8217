"""What the engine asks of the work that it spreads; nothing here knows what a shard holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Progress = Callable[[int, Sequence[str]], None]
"""Told now and then: how many samples were accepted since the last time, and the reasons of those that were not."""


@dataclass(frozen=True)
class Done:
    """What comes back of a shard: numbers only."""

    accepted: int
    attempts: int
    rejected: dict[str, int] = field(default_factory=dict)
    short: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class Producer(Protocol):
    """The work on one worker, models loaded. One `generate` runs at a time; a `finish` may overlap with it."""

    def generate(self, shard: int, progress: Progress) -> Any:
        """Make a shard's content; what it returns goes to `finish` in the same process."""
        ...

    def finish(self, shard: int, content: Any) -> Done:
        """Write the shard, the receipt last."""
        ...


class Job(Protocol):
    """Travels to the workers, so it must pickle and be light; `open` loads what is heavy."""

    def open(self, device: str, detector: Any | None) -> Producer:
        """Called once on each worker; UserError ends the run. `detector` is the pool's, where there is one."""
        ...

    def open_detector(self, device: str) -> Any:
        """Called once on each worker of the detector pool: an object with `detect(images)`."""
        ...
