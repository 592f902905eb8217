"""Updates the queue and the state after a result or error of a shard, or the loss of its worker."""

import re
import traceback
from collections.abc import Callable
from typing import Any

from factory.engine import logs
from factory.engine.pool import Pool, Worker
from factory.engine.queue import MAX_ERRORS, MAX_LOSSES, ShardQueue
from factory.engine.state import Listener, State
from factory.errors import UserError, shortened

_LONGEST = 600
"""Characters of an error in messages; quarantine/ has all of it."""
_ANSI_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Outcomes:
    """Counts errors and losses for each shard, and requeues or quarantines it."""

    def __init__(
        self, pool: Pool, queue: ShardQueue, state: State, listener: Listener, report_logs: Callable[[], None]
    ) -> None:
        self._pool, self._queue, self._state, self._listener = pool, queue, state, listener
        self._report_logs = report_logs

    def done(self, shard: int, result: Any) -> None:
        """A worker has stored the shard."""
        self._pool.progressed()
        self._queue.done(shard)
        self._state.in_progress.pop(shard, None)  # first: metrics, in another thread, must not count the shard twice
        self._state.add(result)
        self._listener.finished(shard)

    def failed(self, shard: int, text: str) -> None:
        """An error while the shard was produced; `text` is the whole error."""
        text = _ANSI_COLOURS.sub("", text)
        errors = self._queue.failed(shard)
        self._state.report(f"shard {shard}, try {errors} of {MAX_ERRORS}: {last_line(text)}")
        if errors >= MAX_ERRORS:
            self._quarantine(shard, text)

    def lost(self, shard: int, reason: str, worker: Worker | None = None) -> None:
        """The worker was lost while it produced the shard, which may be the cause."""
        losses = self._queue.lost(shard)
        text = f"shard {shard}: its worker was lost ({losses} of {MAX_LOSSES} times): {reason}"
        self._state.report(text)
        if losses < MAX_LOSSES:
            self._state.requeued += 1
            return
        where = worker.where if worker is not None else {}
        output = logs.LOGS.tail(where.get("ip", ""), where.get("pid", ""))
        self._quarantine(shard, text + (f"\n\nThe last lines of its worker:\n{output}" if output else ""))

    def interrupted(self, shard: int) -> None:
        """The shard was not finished, for a reason unrelated to it."""
        self._state.requeued += 1
        self._queue.put_back(shard)

    def replace(self, worker: Worker, reason: str, charged: bool) -> None:
        """Remove an actor and requeue its unfinished shards; with `charged`, the one in progress counts as a loss."""
        self._state.lost += 1
        assigned = dict(worker.shards)
        # The oldest shard is in progress, and so are shards that reported progress; the others were waiting.
        in_progress = {next(iter(assigned)), *worker.counts} & set(assigned) if assigned else set()
        for shard, reference in assigned.items():
            if self._had_ended(shard, reference):
                continue
            if not charged:
                self.interrupted(shard)
            elif shard in in_progress:
                self.lost(shard, reason, worker)
            else:
                self._state.requeued += 1
                self._queue.lost_waiting(shard)
        worker.shards.clear()
        self._pool.fail(worker)

    def _had_ended(self, shard: int, reference: Any) -> bool:
        """Whether a lost actor had already returned a result or an error for a shard; if so, it counts."""
        import ray

        if not ray.wait([reference], timeout=0)[0]:
            return False
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, (ray.exceptions.RayError, UserError)):
                return False
            self.failed(shard, str(error))
        except ray.exceptions.RayError:
            return False
        else:
            self.done(shard, result)
        return True

    def _quarantine(self, shard: int, text: str) -> None:
        self._state.quarantined.append(shard)
        self._listener.quarantine(shard, text)
        self._report_logs()


def last_line(error: object) -> str:
    """The last non-empty line of an error's text."""
    text = str(error) if not isinstance(error, BaseException) else "".join(traceback.format_exception_only(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return shortened(lines[-1], _LONGEST) if lines else "no message"
