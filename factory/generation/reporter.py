"""Writes the reports of a driver: progress.json, quarantine/, logs/ and the receipt index.

Background threads write them, and failed writes are dropped, so that reports never stop or delay a run. Only receipts
determine what is finished.
"""

import json
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Container
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from factory.config.plan import shard_name
from factory.dataset.lease import HeldLease
from factory.dataset.progress_file import PROGRESS
from factory.dataset.receipt_index import ReceiptIndex
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import RECIPE
from factory.engine.state import Listener, State
from factory.errors import UserError
from factory.files.strict_json import canonical
from factory.generation.progress import Snapshot, Tracker

_log = logging.getLogger("factory.generation.run")
_PROGRESS_EVERY = 3.0
_PATIENCE = 10.0
_CLOSE_TIMEOUT = 5.0
_WORKERS_WAIT = 20.0
"""Seconds for which workers wait, while the driver does not, before it is logged: longer than a pause of theirs."""

Watch = Callable[[Snapshot], None]


class Reporter:
    """The listener of the scheduler. `tick` also stops the run if another driver took over the lease."""

    def __init__(
        self, store: Store, tracker: Tracker, watch: Watch, held: HeldLease, already_quarantined: set[int]
    ) -> None:
        """`already_quarantined` holds the shards in quarantine at the start."""
        self._store, self._tracker, self._watch, self._held = store, tracker, watch, held
        self._impatient_store = store.with_patience(_PATIENCE)
        self._workers = _WaitingWorkers(store.address)
        self._quarantined = already_quarantined
        self._written = 0.0
        self._writer = _Background()
        self._keeper = IndexKeeper(ReceiptIndex(self._impatient_store))
        self._progress, self._logs = _Latest(self._writer), _Latest(self._writer)
        self._written_logs = ""
        self._log = f"logs/{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}.log"

    def as_listener(self) -> Listener:
        """The callbacks for the scheduler."""
        return Listener(tick=self.tick, quarantine=self.quarantine, finished=self.finished, logs=self.logs)

    def tick(self, state: State) -> None:
        """Show and write the progress; pause the run while the store does not respond.

        Raises UserError if the dataset was moved or deleted: what is written from now on would belong to no dataset.
        """
        self._held.check()
        if self._held.was_deleted:
            self._held.was_deleted = False
            if self._store.get(RECIPE) is None:
                raise UserError(
                    f"{self._store.address} was moved or deleted while it was generated; rerun the command with its "
                    f"new address to resume, and delete what this run has written to {self._store.address} since."
                )
        state.waiting = self._store.trouble or ""
        self._workers.report(state)
        snapshot = self._tracker.snapshot(state, "waiting" if state.waiting else "running")
        self._watch(snapshot)
        if time.monotonic() - self._written > _PROGRESS_EVERY:
            self._written = time.monotonic()
            self._report(snapshot)

    def quarantine(self, shard: int, text: str) -> None:
        """Write the error of a quarantined shard."""
        self._quarantined.add(shard)
        data = json.dumps({"shard": shard, "error": self._store.hide(text)}, indent=1).encode()
        self._writer.do(lambda: self._impatient_store.put(quarantine_name(shard), data))

    def logs(self, text: str) -> None:
        """Write the output of the workers to the log file of this run; with a slow store, only the latest output."""
        self._logs.do(lambda: self._write_logs(text))

    def finished(self, shard: int) -> None:
        """Record a finished shard, and remove it from quarantine if an earlier run put it there."""
        self._keeper.finished(shard)
        if shard in self._quarantined:
            self._quarantined.discard(shard)
            self._writer.do(lambda: self._impatient_store.delete(quarantine_name(shard)))

    def drain(self) -> None:
        """Wait until the receipts of all finished shards are in the index."""
        self._keeper.drain()

    def close(self, snapshot: Snapshot) -> None:
        """Write the final progress and wait briefly for pending writes."""
        self._keeper.close()
        if not self._held.lost:
            self._report(snapshot)
        self._writer.close(_CLOSE_TIMEOUT)
        self._progress.drop()  # with a slow store, it would replace the progress of the finished run

    def _report(self, snapshot: Snapshot) -> None:
        """Queue the progress for writing; with a slow store, only the latest snapshot is written."""
        data = canonical({**snapshot.to_dict(), "driver": self._held.holder}) + b"\n"
        self._progress.do(lambda: self._impatient_store.put(PROGRESS, data))

    def _write_logs(self, text: str) -> None:
        if text != self._written_logs:
            self._impatient_store.put(self._log, self._store.hide(text).encode(errors="replace"))
            self._written_logs = text


class _WaitingWorkers:
    """Logs that the store does not respond to workers although it responds to the driver, and when that is over."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._since: float | None = None
        self._logged = False

    def report(self, state: State) -> None:
        """Called at every tick. After an outage that the driver noticed too, workers may need a while to continue."""
        if not state.waiting_workers or state.waiting:
            if self._logged and not state.waiting:
                _log.warning("%s responds to all workers again.", self._address)
                self._logged = False
            self._since = None
        elif self._since is None:
            self._since = time.monotonic()
        elif not self._logged and time.monotonic() - self._since > _WORKERS_WAIT:
            _log.warning("%s", state.waiting_workers)
            self._logged = True


class IndexKeeper:
    """Adds receipts of finished shards to the index in the background, so that few are left to read at the end."""

    def __init__(self, index: ReceiptIndex) -> None:
        self._index = index
        self._finished: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._stop, self._busy = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)
        self._thread.start()

    def finished(self, shard: int) -> None:
        """Queue a shard whose receipt has been written."""
        self._finished.put(shard)

    def drain(self) -> None:
        """Wait until all queued receipts are in the index."""
        # In this order, because the thread is marked as busy before it empties the queue.
        while not self._finished.empty() or self._busy:
            time.sleep(0.01)

    def close(self) -> None:
        """Stop; receipts that are not in the index yet are read when they are needed."""
        self._stop.set()
        self._thread.join(_CLOSE_TIMEOUT)

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            self._busy = True
            numbers = [self._finished.get() for _ in range(self._finished.qsize())]
            if numbers:
                try:
                    self._index.add(numbers)
                    self._index.save(only_full=True)
                except UserError:
                    pass  # a broken receipt is reported by `write_description` at the end of the run
            self._busy = False
        try:
            self._index.save()
        except UserError:
            return


class _Background:
    """A thread that runs actions one after the other and ignores those that fail."""

    def __init__(self) -> None:
        self._actions: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="reports", daemon=True)
        self._thread.start()

    def do(self, action: Callable[[], Any]) -> None:
        self._actions.put(action)

    def close(self, seconds: float) -> None:
        self._actions.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (action := self._actions.get()) is not None:
            try:
                action()
            except UserError:
                continue


class _Latest:
    """Writes of one file in the background thread, of which only the latest is done."""

    def __init__(self, writer: _Background) -> None:
        self._writer = writer
        self._writes: deque[Callable[[], Any]] = deque(maxlen=1)

    def do(self, write: Callable[[], Any]) -> None:
        # Queued every time: without a lock, it is not known whether the thread still has to come to an earlier one.
        self._writes.append(write)
        self._writer.do(self._do_latest)

    def drop(self) -> None:
        self._writes.clear()

    def _do_latest(self) -> None:
        try:
            write = self._writes.pop()
        except IndexError:  # done or dropped
            return
        write()


def quarantine_name(shard: int) -> str:
    """The file with the error of a quarantined shard."""
    return f"quarantine/{shard_name(shard)}.json"


def forget_finished(store: Store, finished: Container[int]) -> None:
    """Delete the errors of shards that exist after all: a worker that was considered lost can still finish its shard.

    A run deletes those of the shards that it finishes. Failures are ignored.
    """
    with suppress(UserError):
        names = [quarantine_name(shard) for shard in quarantined(store) if shard in finished]
        store.with_patience(_PATIENCE).delete_all(names)


def quarantined(store: Store) -> set[int]:
    """The quarantined shards, from one listing."""
    stems = (name.removeprefix("quarantine/").removesuffix(".json") for name in store.list("quarantine"))
    return {int(stem) for stem in stems if stem.isdecimal()}
