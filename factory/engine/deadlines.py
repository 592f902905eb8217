"""How long a worker may take before it counts as hanging."""

import time

from factory.config.sections import EngineRecipe
from factory.engine.pool import Worker

_KNOWN_AFTER = 3
_SHORTEST = 600.0
_FACTOR = 10.0
_FIRST_SILENCE = 3600.0


class Deadlines:
    """Deadlines of a run: the recipe's, or what the shards so far suggest."""

    def __init__(self, engine: EngineRecipe) -> None:
        self._engine = engine
        self._slowest, self._known = 0.0, 0

    def complete(self, seconds: float) -> None:
        """A shard was made in so many seconds."""
        self._slowest, self._known = max(self._slowest, seconds), self._known + 1

    def exceeded(self, worker: Worker) -> str | None:
        """A sentence about an actor that is late, or None."""
        now = time.monotonic()
        if not worker.ready:
            limit = self._engine.load_deadline
            return _late("loading", limit) if worker.where and now - worker.since > limit else None
        if not worker.shards:
            return None
        if self._engine.deadline is not None:
            limit = self._engine.deadline
        elif self._known >= _KNOWN_AFTER:
            limit = max(_SHORTEST, self._slowest * _FACTOR)
        elif now - max(worker.since, worker.alive) > _FIRST_SILENCE:
            return f"it tried no sample for {_FIRST_SILENCE:.0f} s; its worker was killed"
        else:
            return None
        return f"it was not done after {limit:.0f} s; its worker was killed" if now - worker.since > limit else None


def _late(what: str, limit: float) -> str:
    return f"{what} was not done after {limit:.0f} s (engine.load_deadline); the worker was killed"
