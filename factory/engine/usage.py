"""Measures for how long a run uses workers and GPUs."""

import time

from factory.engine.pool import Pool
from factory.engine.state import State


class Usage:
    """Adds the time since its last update to `gpu_seconds` and `worker_seconds` of the state."""

    def __init__(self, pool: Pool, state: State) -> None:
        self._pool, self._state = pool, state
        self._updated = time.monotonic()

    def update(self) -> None:
        """Count every actor that is running; an actor that waits for resources uses none."""
        now = time.monotonic()
        elapsed, self._updated = now - self._updated, now
        workers = [worker for worker in self._pool.workers if worker.where]
        detectors = [worker for worker in self._pool.detectors if worker.where]
        self._state.worker_seconds += elapsed * len(workers)
        self._state.gpu_seconds += elapsed * sum(worker.request.gpus for worker in [*workers, *detectors])
