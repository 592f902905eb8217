"""The scheduler: gives shards to actors, and takes what comes back, until all are done."""

import re
import time
import traceback
from collections.abc import Sequence
from typing import Any

from factory.config.sections import EngineRecipe
from factory.engine import logs
from factory.engine.deadlines import Deadlines
from factory.engine.health import Health
from factory.engine.pool import Pool, Worker, references
from factory.engine.queue import LOSSES, TRIES, ShardQueue
from factory.engine.state import Listener, State
from factory.engine.view import ClusterView
from factory.errors import StoreUnavailableError, UserError
from factory.signals import stop_requests

__all__ = ["Listener", "Scheduler", "State"]

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_TICK = 0.5
_ASK_EVERY = 2.0


class Scheduler:
    """Runs shards on a pool, through lost actors, errors and hanging workers; all three are counted for each shard."""

    def __init__(
        self, pool: Pool, shards: Sequence[int], view: ClusterView, engine: EngineRecipe, listener: Listener
    ) -> None:
        self._pool, self._view, self._engine, self._listener = pool, view, engine, listener
        self._queue, self._deadlines = ShardQueue(shards), Deadlines(engine)
        self._asked = 0.0
        self.state = State(len(shards))
        self._health = Health(pool, view, engine, self.state)

    def run(self) -> State:
        """Returns when every shard is done or quarantined.

        The first SIGINT or SIGTERM lets the shards under way finish within `engine.grace` seconds; then, or at a second
        signal, KeyboardInterrupt. UserError from a worker ends the run at once; GivenUpError where workers cannot
        start, TransientError where the cluster is gone.
        """
        try:
            with stop_requests() as stopping:
                while self._queue or self._busy():
                    if stopping():
                        self._drain()
                        raise KeyboardInterrupt
                    self._size_pool()
                    self._give()
                    self._turn()
        finally:
            self._keep_logs()
        return self.state

    def _turn(self) -> None:
        """Wait for something to happen, half a second at most, and deal with all that did."""
        import ray

        awaited = references([*self._pool.workers, *self._pool.detectors])
        if awaited:
            ready, rest = ray.wait(list(awaited), num_returns=1, timeout=_TICK)
            if rest:
                ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
            for reference in ready:
                self._take(reference, *awaited[reference])
        else:
            time.sleep(_TICK)
        self._kill_late()
        self._ask_progress()
        self._tell()
        self._health.check_head()

    def _busy(self) -> int:
        return sum(len(worker.shards) for worker in self._pool.workers)

    def _drain(self) -> None:
        """Give nothing more, and take what still gets done within the grace period."""
        grace = self._engine.grace
        self.state.errors.append(
            f"stopping: {self._busy()} shards under way may take {grace:g} s more; a second signal stops at once"
        )
        end = time.monotonic() + grace
        while self._busy() and time.monotonic() < end and not self._health.cut_off():
            self._turn()
        if self._health.cut_off():
            self._pool.abandon()  # a signal to the whole process group ends Ray too

    def _size_pool(self) -> None:
        if self._view.silent_for() > 0:
            return  # asking for an actor would wait for the head
        self._pool.use(self._view.share)
        busy = sum(1 for worker in self._pool.workers if worker.shards)
        wanted = min(self._engine.workers or self._view.fitting, busy + len(self._queue))
        self._pool.grow_to(wanted)
        self._pool.shrink_to(wanted)

    def _give(self) -> None:
        if self.state.waiting:
            return
        for worker in self._pool.free(len(self._queue)):
            shard = self._queue.next(beside_another=bool(worker.shards)) if not worker.alone else None
            if shard is not None:
                self._pool.submit(worker, shard, alone=self._queue.is_suspect(shard))

    def _take(self, reference: Any, worker: Worker, shard: int | None) -> None:
        import ray

        if shard is not None and worker.shards.get(shard) != reference:
            return
        if shard is None and worker not in self._pool.workers and not worker.is_detector:
            return
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._failed(worker, shard, error)
        except ray.exceptions.RayError as error:
            self._lost(worker, error)
        else:
            if shard is not None:
                self._deadlines.complete(time.monotonic() - worker.since)
                self._pool.complete(worker, shard)
                self._done(shard, result)
            elif reference == worker.started:
                worker.where, worker.since = result, time.monotonic()
            else:
                worker.ready, worker.where = True, result
                self._health.started()

    def _done(self, shard: int, result: Any) -> None:
        self._pool.progressed()
        self._queue.done(shard)
        self.state.add(result)
        self._listener.finished(shard)

    def _failed(self, worker: Worker, shard: int | None, error: Any) -> None:
        """An exception in a worker's code: bad input ends the run; a lost detector counts as a loss, all else a try."""
        import ray

        cause = error.cause
        if isinstance(cause, StoreUnavailableError) and shard is not None:
            # The shard was made, but could not be written for as long as the store's patience lasts: not its fault.
            self.state.errors.append(_line(cause))
            self._pool.complete(worker, shard)
            self.state.requeued += 1
            self._queue.put_back(shard)
            return
        if isinstance(cause, UserError):
            raise cause from None
        if shard is None:
            lost = isinstance(cause, ray.exceptions.RayError)
            if lost or worker.is_detector or any(one.ready for one in self._pool.workers):
                self._start_failed(worker, _line(error))
                return
            raise error
        self._pool.complete(worker, shard)
        if isinstance(cause, ray.exceptions.RayError):
            self._lost_with(shard, f"the detector that it asked was lost: {_line(cause)}")
            return
        self._try_again(shard, _COLOURS.sub("", str(error)))
        if worker.share.gpus:
            # An error on a GPU may leave the process without a usable one.
            self._take_out(worker, f"its neighbour failed on the same GPU: {_line(error)}", charged=False)

    def _lost(self, worker: Worker, error: Exception) -> None:
        if getattr(error, "actor_init_failed", False):
            raise UserError(
                f"the workers cannot start: {_line(error)}. Every machine of a cluster needs this version of factory."
            ) from error
        if not worker.ready:
            self._start_failed(worker, _line(error))
            return
        self.state.errors.append(f"lost a worker on {worker.where.get('host', 'an unknown host')}: {_line(error)}")
        self._take_out(worker, _line(error), charged=not getattr(error, "preempted", False))
        self._keep_logs()

    def _start_failed(self, worker: Worker, said: str) -> None:
        """An actor that was lost or failed while it started; they are replaced, but not for ever."""
        self._health.start_failed(worker, said)
        self._take_out(worker, said, charged=False)

    def _take_out(self, worker: Worker, why: str, charged: bool) -> None:
        """Replace an actor. What it had finished counts; what it was making counts as a loss if it is `charged`."""
        self.state.lost += 1
        had = dict(worker.shards)
        making = {next(iter(had)), *worker.counts} & set(had) if had else set()
        for shard, reference in had.items():
            if self._was_done(shard, reference):
                continue
            if shard not in making:
                self.state.requeued += 1
                self._queue.lost_waiting(shard) if charged else self._queue.put_back(shard)
            elif charged:
                self._lost_with(shard, why, worker)
            else:
                self.state.requeued += 1
                self._queue.put_back(shard)
        worker.shards.clear()
        self._pool.fail(worker)

    def _was_done(self, shard: int, reference: Any) -> bool:
        """Whether a lost actor had answered for a shard already; then it counts, well or badly."""
        import ray

        if not ray.wait([reference], timeout=0)[0]:
            return False
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, (ray.exceptions.RayError, UserError)):
                return False
            self._try_again(shard, _COLOURS.sub("", str(error)))
        except ray.exceptions.RayError:
            return False
        else:
            self._done(shard, result)
        return True

    def _lost_with(self, shard: int, why: str, worker: Worker | None = None) -> None:
        losses = self._queue.lost(shard)
        text = f"shard {shard}: its worker was lost, {losses} of {LOSSES} times: {why}"
        self.state.errors.append(text)
        if losses < LOSSES:
            self.state.requeued += 1
            return
        where = worker.where if worker is not None else {}
        written = logs.LOGS.tail(where.get("ip", ""), where.get("pid", ""))
        self._give_up(shard, text + (f"\n\nThe last lines of its worker:\n{written}" if written else ""))

    def _try_again(self, shard: int, text: str) -> None:
        tries = self._queue.failed(shard)
        self.state.errors.append(f"shard {shard}, try {tries} of {TRIES}: {_line(text)}")
        if tries >= TRIES:
            self._give_up(shard, text)

    def _give_up(self, shard: int, text: str) -> None:
        self.state.quarantined.append(shard)
        self._listener.quarantine(shard, text)
        self._keep_logs()

    def _kill_late(self) -> None:
        """A shard over its deadline: the actor is killed, the late shard has failed once, its neighbour is requeued."""
        import ray

        if self.state.waiting:
            for worker in self._pool.workers:
                worker.since = worker.alive = time.monotonic()
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
                self._try_again(shard, late)
                del worker.shards[shard]
                self._take_out(worker, late, charged=False)

    def _ask_progress(self) -> None:
        """Collect the answers to the last questions and, every now and then, ask again; nobody is waited for."""
        import ray

        for worker in self._pool.workers:
            if worker.asked is not None and ray.wait([worker.asked], timeout=0)[0]:
                try:
                    counts = ray.get(worker.asked)
                except ray.exceptions.RayError:
                    counts = {}
                if counts != worker.counts:
                    worker.counts, worker.alive = counts, time.monotonic()
                worker.asked = None
        if time.monotonic() - self._asked > _ASK_EVERY:
            self._asked = time.monotonic()
            for worker in self._pool.workers:
                if worker.ready and worker.shards and worker.asked is None:
                    worker.asked = worker.handle.progress.remote()

    def _tell(self) -> None:
        state, workers = self.state, self._pool.workers
        state.workers = sum(1 for worker in workers if worker.ready)
        state.pending_workers = len(workers) - state.workers
        state.under_way = {
            shard: worker.counts[shard] for worker in workers for shard in worker.shards if shard in worker.counts
        }
        self._listener.tick(state)

    def _keep_logs(self) -> None:
        text = logs.LOGS.text()
        if text:
            self._listener.logs(text)


def _line(error: object) -> str:
    """The last line of an error's text that says something."""
    text = str(error) if not isinstance(error, BaseException) else "".join(traceback.format_exception_only(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
