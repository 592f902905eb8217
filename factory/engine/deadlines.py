"""Deadlines: how long a worker may take before it is considered to hang."""

import time

from factory.config.sections import EngineRecipe
from factory.engine.pool import Worker

_MIN_SHARDS = 3
"""Number of finished shards from which on the deadline is derived from their durations."""
_MIN_DEADLINE = 600.0
_FACTOR = 10.0
_FIRST_SILENCE = 3600.0
"""Seconds without progress that are allowed before a deadline is known."""


class Deadlines:
    """The deadlines of a run: those of the recipe, or ten times the slowest shard so far."""

    def __init__(self, engine: EngineRecipe) -> None:
        self._engine = engine
        self._slowest, self._completed = 0.0, 0

    def complete(self, seconds: float) -> None:
        """Record the duration of a finished shard."""
        self._slowest, self._completed = max(self._slowest, seconds), self._completed + 1

    def exceeded(self, worker: Worker) -> str | None:
        """A message if the actor exceeded its deadline, otherwise None."""
        now = time.monotonic()
        if not worker.ready:
            limit = self._engine.load_deadline
            if worker.where and now - worker.since > limit:
                return f"loading did not finish within {limit:.0f} s (engine.load_deadline); the worker was killed"
            return None
        if not worker.shards:
            return None
        if self._engine.deadline is not None:
            limit = self._engine.deadline
        elif self._completed >= _MIN_SHARDS:
            limit = max(_MIN_DEADLINE, self._slowest * _FACTOR)
        elif now - max(worker.since, worker.last_progress) > _FIRST_SILENCE:
            return f"no progress for {_FIRST_SILENCE:.0f} s; its worker was killed"
        else:
            return None
        return f"not finished within {limit:.0f} s; its worker was killed" if now - worker.since > limit else None
