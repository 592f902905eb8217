"""What a driver writes beside the shards: progress.json, quarantine/ and the receipt index; none of it may stop it.

All of it is written by threads of its own and dropped where the store does not take it; what counts are the receipts.
"""

import json
import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from factory.config.plan import shard_name
from factory.config.recipe import canonical
from factory.dataset.lease import HeldLease
from factory.dataset.receipt_index import ReceiptIndex
from factory.dataset.state import PROGRESS
from factory.dataset.storage import Store
from factory.engine.scheduler import Listener, State
from factory.errors import UserError
from factory.generation.progress import Snapshot, Tracker

_PROGRESS_EVERY = 3.0
_PATIENCE = 10.0
_LAST_WORDS = 5.0

Watch = Callable[[Snapshot], None]


class Reporter:
    """Listens to the scheduler. `tick` also stops the run where its lease was taken over."""

    def __init__(self, store: Store, tracker: Tracker, watch: Watch, held: HeldLease, given_up: set[int]) -> None:
        """`given_up` are the shards in quarantine, as listed at the start."""
        self._store, self._tracker, self._watch, self._held = store, tracker, watch, held
        self._brief = store.with_patience(_PATIENCE)
        self._given_up = given_up
        self._written = 0.0
        self._writer = _Background("reports")
        self._keeper = IndexKeeper(ReceiptIndex(self._brief))
        self._news: bytes | None = None
        self._log = f"logs/{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}.log"

    def as_listener(self) -> Listener:
        """What the scheduler calls."""
        return Listener(tick=self.tick, quarantine=self.quarantine, finished=self.finished, logs=self.logs)

    def tick(self, state: State) -> None:
        """Show and write where the run stands; hold it while the store does not answer."""
        self._held.check()
        state.waiting = self._store.trouble or ""
        snapshot = self._tracker.snapshot(state, "waiting" if state.waiting else "running")
        self._watch(snapshot)
        if time.monotonic() - self._written > _PROGRESS_EVERY:
            self._written = time.monotonic()
            self._report(snapshot)

    def quarantine(self, shard: int, text: str) -> None:
        """Leave a shard's error beside the shards."""
        self._given_up.add(shard)
        data = json.dumps({"shard": shard, "error": self._store.hide(text)}, indent=1).encode()
        self._writer.do(lambda: self._brief.put(quarantine_name(shard), data))

    def logs(self, text: str) -> None:
        """Keep what the workers wrote, in one file for each run."""
        data = self._store.hide(text).encode()
        self._writer.do(lambda: self._brief.put(self._log, data))

    def finished(self, shard: int) -> None:
        """A shard is done, perhaps one that was given up in an earlier run."""
        self._keeper.finished(shard)
        if shard in self._given_up:
            self._given_up.discard(shard)
            self._writer.do(lambda: self._brief.delete(quarantine_name(shard)))

    def drain(self) -> None:
        """Wait until the receipts of all finished shards are in the index."""
        self._keeper.drain()

    def close(self, snapshot: Snapshot) -> None:
        """The last word, and a moment for what is still to be written."""
        self._keeper.close()
        if not self._held.lost:
            self._report(snapshot)
        self._writer.close(_LAST_WORDS)

    def _report(self, snapshot: Snapshot) -> None:
        """Only the newest news are written, however slow the store is."""
        waiting = self._news is not None
        self._news = canonical(snapshot.to_dict()) + b"\n"
        if not waiting:
            self._writer.do(self._write_news)

    def _write_news(self) -> None:
        news, self._news = self._news, None
        if news is not None:
            self._brief.put(PROGRESS, news)


class IndexKeeper:
    """Reads the receipts of finished shards in the background, so that the end of a run has few left to read."""

    def __init__(self, index: ReceiptIndex) -> None:
        self._index = index
        self._finished: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._over, self._busy = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)
        self._thread.start()

    def finished(self, shard: int) -> None:
        """A shard's receipt is there."""
        self._finished.put(shard)

    def drain(self) -> None:
        """Wait until nothing is left to read."""
        while self._busy or not self._finished.empty():
            time.sleep(0.01)

    def close(self) -> None:
        """Stop; what was not read yet is read by whoever needs it."""
        self._over.set()
        self._thread.join(_LAST_WORDS)

    def _run(self) -> None:
        while not self._over.wait(1.0):
            self._busy = True
            numbers = [self._finished.get() for _ in range(self._finished.qsize())]
            if numbers:
                try:
                    self._index.add(numbers)
                    self._index.save(only_full=True)
                except UserError:
                    pass  # the statement at the end says what is wrong with a receipt
            self._busy = False
        try:
            self._index.save()
        except UserError:
            return


class _Background:
    """A thread that does one thing after the other and forgets those that fail."""

    def __init__(self, name: str) -> None:
        self._todo: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, action: Callable[[], Any]) -> None:
        self._todo.put(action)

    def close(self, seconds: float) -> None:
        self._todo.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (action := self._todo.get()) is not None:
            try:
                action()
            except UserError:
                continue


def quarantine_name(shard: int) -> str:
    """Where the error of a shard that was given up lies."""
    return f"quarantine/{shard_name(shard)}.json"


def quarantined(store: Store) -> set[int]:
    """The shards that were given up: one listing."""
    stems = (name.removeprefix("quarantine/").removesuffix(".json") for name in store.list("quarantine"))
    return {int(stem) for stem in stems if stem.isdecimal()}
