"""The scheduler: submits shards to actors and collects the results until all shards are finished."""

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from factory.config.sections import EngineRecipe
from factory.engine import logs
from factory.engine.deadlines import Deadlines
from factory.engine.health import Health
from factory.engine.outcomes import Outcomes, last_line
from factory.engine.pauses import Pauses
from factory.engine.pool import Pool, Worker, references
from factory.engine.queue import ShardQueue
from factory.engine.state import Limit, Listener, State
from factory.engine.usage import Usage
from factory.engine.view import ClusterView
from factory.errors import GpuError, StoreUnavailableError, UserError, counted
from factory.signals import stop_requests

_TICK = 0.5
_PROGRESS_INTERVAL = 2.0
_LOGS_INTERVAL = 60.0
_DEAD_NODE = re.compile(r"its node has died\. Node Id: (\w+)")
"""In Ray's message about a lost actor."""


class Scheduler:
    """Runs shards on a pool and handles lost actors, errors and hanging workers, which it counts for each shard."""

    def __init__(
        self,
        pool: Pool,
        shards: Sequence[int],
        view: ClusterView,
        engine: EngineRecipe,
        listener: Listener,
        limit: Limit | None = None,
    ) -> None:
        self._pool, self._view, self._engine, self._listener = pool, view, engine, listener
        self._limit = limit or Limit()
        self._queue, self._deadlines, self._pauses = ShardQueue(shards), Deadlines(engine), Pauses()
        self._progress_requested, self._logs_reported = 0.0, time.monotonic()
        self._without_store = set[Worker]()
        """The workers that could not write a shard since the last one was finished."""
        self.state = State(len(shards))
        self._health = Health(pool, view, engine, self.state)
        self._usage = Usage(pool, self.state)
        self._outcomes = Outcomes(pool, self._queue, self.state, listener, self._report_logs)

    def run(self) -> State:
        """Run until every shard is done or quarantined, or until the limit is reached (`state.limited`).

        After the first SIGINT or SIGTERM, shards in progress may finish within `engine.grace` seconds; then, or at a
        second signal, KeyboardInterrupt is raised. A UserError from a worker ends the run immediately. Raises
        RunFailedError if workers cannot start, and TransientError if the cluster is gone.
        """
        try:
            with stop_requests() as stopping:
                while self._queue or self._busy():
                    if stopping():
                        self._drain()
                        raise KeyboardInterrupt
                    if self._limit.reached(self.state):
                        self._wind_down(stopping)
                        break
                    self._size_pool()
                    self._submit()
                    self._step()
                self.state.interrupted = stopping()
        finally:
            self._report_logs()
            self.state.in_progress = {}  # these shards are not finished, so their samples are generated again
        return self.state

    def _step(self) -> None:
        """Wait up to half a second for results and handle all that arrived."""
        import ray

        awaited = references([*self._pool.workers, *self._pool.detectors])
        if awaited:
            ready, rest = ray.wait(list(awaited), num_returns=1, timeout=_TICK)
            if rest:
                ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
            for reference in ready:
                self._handle(reference, *awaited[reference])
        else:
            time.sleep(_TICK)
        self._kill_late()
        self._request_progress()
        self._report()
        if time.monotonic() - self._logs_reported > _LOGS_INTERVAL:
            self._report_logs()
        self._health.check_head()

    def _busy(self) -> int:
        return sum(len(worker.shards) for worker in self._pool.workers)

    def _drain(self) -> None:
        """Submit no more shards, and collect those that finish within the grace period."""
        grace, busy = self._engine.grace, self._busy()
        if busy:
            self.state.report(
                f"stopping: waiting up to {grace:g} s for {counted(busy, 'shard')} in progress; a second signal stops "
                f"immediately"
            )
        end = time.monotonic() + grace
        while self._busy() and time.monotonic() < end and not self._health.is_cut_off():
            self._step()
        if self._health.is_cut_off():
            self._pool.abandon()  # a signal to the whole process group has ended Ray too

    def _wind_down(self, stopping: Callable[[], bool]) -> None:
        """The limit is reached: collect the shards in progress within its grace period; a signal shortens it."""
        end = time.monotonic() + self._limit.grace
        while self._busy() and time.monotonic() < end:
            if stopping():
                self._drain()
                raise KeyboardInterrupt
            self._step()
        self.state.limited = bool(self._queue or self._busy())

    def _size_pool(self) -> None:
        if self._view.silent_for() > 0:
            return  # creating an actor would block until the head node responds
        self._pool.use(self._view.request)
        busy = sum(1 for worker in self._pool.workers if worker.shards)
        size = min(self._engine.workers or self._view.fitting, busy + len(self._queue))
        self._pool.grow_to(size)
        self._pool.shrink_to(size)

    def _submit(self) -> None:
        if self.state.waiting:
            return
        for worker in self._pool.free(len(self._queue)):
            shard = self._queue.next(beside_another=bool(worker.shards)) if not worker.alone else None
            if shard is not None:
                self._pool.submit(worker, shard, alone=self._queue.is_suspect(shard))

    def _handle(self, reference: Any, worker: Worker, shard: int | None) -> None:
        """Handle a resolved reference; the worker may have been removed since the references were collected."""
        import ray

        if shard is not None and worker.shards.get(shard) != reference:
            return
        if shard is None and worker not in self._pool.workers and not worker.is_detector:
            return
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if shard is None:
                self._load_failed(worker, error)
            else:
                self._shard_failed(worker, shard, error)
        except ray.exceptions.RayError as error:
            self._lost(worker, error)
        else:
            if shard is not None:
                self._deadlines.complete(time.monotonic() - worker.since)
                self._without_store.clear()
                self._pool.complete(worker, shard)
                self._outcomes.done(shard, result)
            elif reference == worker.started:
                worker.where, worker.since = result, time.monotonic()
            else:
                worker.ready, worker.where = True, result
                self._health.started()

    def _load_failed(self, worker: Worker, error: Any) -> None:
        """Handle an exception while models were loaded: invalid input ends the run, others are failed starts."""
        import ray

        cause, any_ready = error.cause, any(other.ready for other in self._pool.workers)
        # While other workers are ready, a GPU that is full or broken does not end the run.
        if isinstance(cause, UserError) and not (any_ready and isinstance(cause, GpuError)):
            raise cause from None
        if not (isinstance(cause, ray.exceptions.RayError) or worker.is_detector or any_ready):
            raise error
        self._start_failed(worker, last_line(error))

    def _shard_failed(self, worker: Worker, shard: int, error: Any) -> None:
        """Handle an exception of a shard: invalid input ends the run, a lost detector is a loss, others are errors."""
        import ray

        cause = error.cause
        if isinstance(cause, StoreUnavailableError):
            # The shard was generated but could not be written within the store's patience: not counted as its error.
            self._without_store.add(worker)
            if self._without_store.issuperset(other for other in self._pool.workers if other.ready):
                raise cause from None  # the driver may reach the store, but no worker does
            self.state.report(last_line(cause))
            self._pool.complete(worker, shard)
            self._outcomes.interrupted(shard)
            return
        if isinstance(cause, UserError):
            raise cause from None
        self._pool.complete(worker, shard)
        if isinstance(cause, ray.exceptions.RayError):
            self._outcomes.lost(shard, f"the detector that it called was lost: {last_line(cause)}")
            return
        self._outcomes.failed(shard, str(error))
        if worker.request.gpus:
            # After a CUDA error, the process may be unable to use its GPU.
            self._outcomes.replace(worker, f"another shard failed on the same GPU: {last_line(error)}", charged=False)

    def _lost(self, worker: Worker, error: Exception) -> None:
        if getattr(error, "actor_init_failed", False):
            raise UserError(
                f"the workers cannot start: {last_line(error).rstrip('.')}. Every node of the cluster needs this "
                f"version of factory."
            ) from error
        if not worker.ready:
            node = _DEAD_NODE.search(str(error))
            self._start_failed(worker, last_line(error), None if node is None else node[1])
            return
        self.state.report(f"lost {worker.name}: {last_line(error)}")
        self._outcomes.replace(worker, last_line(error), charged=not getattr(error, "preempted", False))
        self._report_logs()

    def _start_failed(self, worker: Worker, message: str, dead_node: str | None = None) -> None:
        """Replace an actor that was lost or failed while starting; raises RunFailedError after too many of them."""
        self._health.start_failed(worker, message, dead_node)
        self._outcomes.replace(worker, message, charged=False)

    def _kill_late(self) -> None:
        """Kill actors past their deadline: the late shard counts as an error, the actor's other shard is requeued."""
        import ray

        # While workers wait for the store, or may have been stopped like this process, deadlines are suspended.
        if self._pauses.ended() or self.state.waiting:
            for worker in [*self._pool.workers, *self._pool.detectors]:
                worker.since = worker.last_progress = time.monotonic()
            return
        for worker in [*self._pool.workers, *self._pool.detectors]:
            late = self._deadlines.exceeded(worker)
            if late is None:
                continue
            if not worker.ready:
                self._start_failed(worker, late)
                continue
            shard, reference = next(iter(worker.shards.items()))
            if not ray.wait([reference], timeout=0)[0]:
                self._outcomes.failed(shard, late)
                del worker.shards[shard]
                self._outcomes.replace(worker, late, charged=False)
                if worker.detector is not None:
                    self._restart_detector(worker.detector)

    def _restart_detector(self, position: int) -> None:
        """Restart a detector for which a late worker waits: it may hang. Others that wait for it get more time."""
        detector = self._pool.detectors[position]
        self.state.report(f"restarting {detector.name}: a worker that exceeded its deadline was waiting for it")
        self._pool.restart(detector)
        for worker in self._pool.workers:
            if worker.detector == position:
                worker.since = worker.last_progress = time.monotonic()

    def _request_progress(self) -> None:
        """Collect the progress that workers have reported and request it again at intervals, without blocking."""
        import ray

        for worker in self._pool.workers:
            if worker.progress_call is not None and ray.wait([worker.progress_call], timeout=0)[0]:
                try:
                    counts, worker.waiting, worker.detector = ray.get(worker.progress_call)
                except ray.exceptions.RayError:
                    counts, worker.waiting = {}, ""
                if counts != worker.counts:
                    worker.counts, worker.last_progress = counts, time.monotonic()
                if worker.waiting or self._pool.is_loading(worker.detector):  # its deadlines are suspended
                    worker.since = worker.last_progress = time.monotonic()
                worker.progress_call = None
        if time.monotonic() - self._progress_requested > _PROGRESS_INTERVAL:
            self._progress_requested = time.monotonic()
            for worker in self._pool.workers:
                if worker.ready and worker.shards and worker.progress_call is None:
                    worker.progress_call = worker.handle.progress.remote()

    def _report(self) -> None:
        state, workers = self.state, self._pool.workers
        self._usage.update()
        state.workers = sum(1 for worker in workers if worker.ready)
        state.pending_workers = len(workers) - state.workers
        state.queued = len(self._queue)
        state.in_progress = {
            shard: worker.counts[shard] for worker in workers for shard in worker.shards if shard in worker.counts
        }
        state.waiting_workers = _waiting(workers)
        self._listener.tick(state)

    def _report_logs(self) -> None:
        self._logs_reported = time.monotonic()
        if text := logs.LOGS.text():
            self._listener.logs(text)


def _waiting(workers: Sequence[Worker]) -> str:
    """How many workers wait, and why the first of them does; empty if none does."""
    waiting = [worker for worker in workers if worker.shards and worker.waiting]
    if not waiting:
        return ""
    verb = "waits" if len(waiting) == 1 else "wait"
    host = waiting[0].where.get("host", "an unknown host")
    return f"{len(waiting)} of {counted(len(workers), 'worker')} {verb}; on {host}: {waiting[0].waiting}"
