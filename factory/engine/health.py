"""Detects when a run cannot continue: workers that cannot start, and a cluster whose head node is gone."""

from factory.config.sections import EngineRecipe
from factory.engine import logs
from factory.engine.pool import Pool, Worker
from factory.engine.state import State
from factory.engine.view import ClusterView
from factory.errors import RunFailedError, TransientError

FAILED_STARTS = 5
"""Consecutive failed starts, with no worker ready, after which the run ends."""
SILENCE_REPORTED = 8.0
_CUT_OFF = SILENCE_REPORTED / 2
"""Seconds without a response after which a run that is stopping does not wait for results."""
LONGEST_SILENCE, LONGEST_LOCAL_SILENCE = 40.0, 15.0
"""Seconds without a response from the head node after which the run ends. After 60 s, Ray would abort this process. A
local head node never comes back, so that wait is shorter."""


class Health:
    """Counts failed starts and watches whether the head node responds."""

    def __init__(self, pool: Pool, view: ClusterView, engine: EngineRecipe, state: State) -> None:
        self._pool, self._view, self._engine, self._state = pool, view, engine, state
        self._failed_starts, self._reported = 0, False
        self._dead_nodes = set[str]()

    def started(self) -> None:
        """A worker became ready."""
        self._failed_starts = 0

    def start_failed(self, worker: Worker, message: str, dead_node: str | None) -> None:
        """Record an actor that was lost or failed while starting; RunFailedError after too many failures.

        A node that died is one failure, regardless of the actors that were loading there; waiting actors do not count.
        """
        kind = "detector worker" if worker.is_detector else "worker"
        output = logs.LOGS.tail(worker.where.get("ip", ""), worker.where.get("pid", ""), 3)
        message = " | ".join([message, *output.splitlines()])
        self._state.report(f"{worker.name} did not start: {message}")
        if dead_node is None:
            self._failed_starts += 1
        elif worker.where and dead_node not in self._dead_nodes:
            self._failed_starts += 1
            self._dead_nodes.add(dead_node)
        any_ready = any(other.ready for other in self._pool.workers)
        if worker.is_detector or (self._failed_starts >= FAILED_STARTS and not any_ready):
            times = "repeatedly" if worker.is_detector else f"{self._failed_starts} times in a row"
            raise RunFailedError(
                f"the {kind}s cannot start: they failed {times} while loading, most recently with: "
                f"{message.rstrip('.')}. Give them more memory, start fewer of them (--workers), or fix the reported "
                f"cause; finished shards are kept."
            )

    def is_cut_off(self) -> bool:
        """Whether the head node has been silent for so long that a stopping run should not wait for results."""
        return self._view.silent_for() > _CUT_OFF

    def check_head(self) -> None:
        """Abandon the pool and raise TransientError if the head node has been silent for too long, or Ray died here."""
        address = self._engine.address
        if lost := lost_cluster(self._view, address):
            self._pool.abandon()
            raise TransientError(f"{lost}. Committed shards are kept; rerun the same command{_when_back(address)}.")
        silent = self._view.silent_for()
        if silent > SILENCE_REPORTED and not self._reported:
            self._state.report(f"{_head(address)} does not respond; waiting up to {_longest(address):.0f} s")
        self._reported = silent > SILENCE_REPORTED


def lost_cluster(view: ClusterView, address: str | None, stopping: bool = False) -> str | None:
    """How the cluster at `address` was lost; None if it responds, or if a run that is not stopping should wait."""
    if view.own_node_died:
        return "Ray on this machine has died, and with it all workers of this run"
    silent = view.silent_for()
    if silent > (_CUT_OFF if stopping else _longest(address)):
        return f"{_head(address)} has not responded for {silent:.0f} s: it died or is unreachable"
    return None


def _longest(address: str | None) -> float:
    return LONGEST_LOCAL_SILENCE if address is None else LONGEST_SILENCE


def _head(address: str | None) -> str:
    return "Ray on this machine" if address is None else f"the head node of the Ray cluster at {address}"


def _when_back(address: str | None) -> str:
    return "" if address is None else " when the cluster is back"
