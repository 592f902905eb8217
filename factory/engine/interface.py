"""The interface between the engine and the work that it distributes; it does not depend on the content of shards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Progress = Callable[[int, Sequence[str]], None]
"""Called repeatedly with the number of samples accepted since the last call and the reasons of the rejected ones."""


@dataclass(frozen=True)
class Done:
    """The result of a shard as the driver sees it: counts and timings only, never the content."""

    accepted: int
    attempts: int
    rejected: dict[str, int] = field(default_factory=dict)
    exhausted: int = 0
    """Samples that were rejected in every attempt."""
    seconds: dict[str, float] = field(default_factory=dict)


class Producer(Protocol):
    """The work on one worker, with its models loaded. Only one `generate` runs at a time; a `finish` may overlap."""

    def generate(self, shard: int, progress: Progress) -> Any:
        """Generate the content of a shard; the result is passed to `finish` in the same process."""
        ...

    def finish(self, shard: int, content: Any) -> Done:
        """Write the shard, and its receipt last."""
        ...

    def waiting(self) -> str:
        """Why it waits, as for a store that does not respond; empty while it works. Called at any time."""
        ...


class Job(Protocol):
    """The work of a run. It is sent to the workers, so it must be small and picklable; `open` loads the models."""

    def open(self, device: str, detector: Any | None) -> Producer:
        """Called once on each worker; a UserError ends the run. `detector` is the detector pool, if there is one."""
        ...

    def open_detector(self, device: str) -> Any:
        """Called once on each worker of the detector pool; returns an object with `detect(images, classes)`."""
        ...
