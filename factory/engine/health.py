"""When a run has to end because of where it runs: workers that cannot start, and a cluster whose head is gone."""

from factory.config.sections import EngineRecipe
from factory.engine import logs
from factory.engine.pool import Pool, Worker
from factory.engine.state import State
from factory.engine.view import ClusterView
from factory.errors import GivenUpError, TransientError

FAILED_STARTS = 5
"""Workers that may fail to start in a row while none is ready."""
SILENCE_TOLD = 8.0
LONGEST_SILENCE, LONGEST_LOCAL_SILENCE = 40.0, 15.0
"""Seconds without an answer of the cluster's head; after 60 Ray would end this process itself. A local one does not
come back."""


class Health:
    """Counts failed starts, and watches the silence of the head."""

    def __init__(self, pool: Pool, view: ClusterView, engine: EngineRecipe, state: State) -> None:
        self._pool, self._view, self._engine, self._state = pool, view, engine, state
        self._failed_starts, self._told = 0, False

    def started(self) -> None:
        """A worker is ready."""
        self._failed_starts = 0

    def start_failed(self, worker: Worker, said: str) -> None:
        """An actor was lost or failed while it started: GivenUpError where trying again is of no use."""
        what = "detector worker" if worker.is_detector else "worker"
        written = logs.LOGS.tail(worker.where.get("ip", ""), worker.where.get("pid", ""), 3)
        said = " | ".join([said, *written.splitlines()])
        self._state.errors.append(f"a {what} on {worker.where.get('host', 'an unknown host')} did not start: {said}")
        self._failed_starts += 1
        working = any(one.ready for one in self._pool.workers)
        if worker.is_detector or (self._failed_starts >= FAILED_STARTS and not working):
            times = "again and again" if worker.is_detector else f"{self._failed_starts} times in a row"
            raise GivenUpError(
                f"the {what}s cannot start: they failed {times} while loading, at last with: {said}. Give them more "
                f"memory, fewer of them (--workers), or correct what that says; finished shards are kept."
            )

    def cut_off(self) -> bool:
        """Whether the head is silent for so long that, when stopping anyway, nothing more is to be expected."""
        return self._view.silent_for() > SILENCE_TOLD / 2

    def check_head(self) -> None:
        """TransientError where the head has been silent for too long; the pool is abandoned then."""
        silent, local = self._view.silent_for(), self._engine.address is None
        longest = LONGEST_LOCAL_SILENCE if local else LONGEST_SILENCE
        if silent > longest:
            self._pool.abandon()
            head = "Ray on this machine" if local else f"the head of the Ray cluster at {self._engine.address}"
            raise TransientError(
                f"{head} has not answered for {silent:.0f} s: it is gone, or cut off. Committed shards are kept; give "
                f"the same command again{'' if local else ' when the cluster is back'}."
            )
        if silent > SILENCE_TOLD and not self._told:
            self._state.errors.append(f"the head of the Ray cluster does not answer; waiting up to {longest:.0f} s")
        self._told = silent > SILENCE_TOLD
