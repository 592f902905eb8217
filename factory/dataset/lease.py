"""A lease that limits a dataset to one driver: a file in the dataset, renewed by a heartbeat."""

import json
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import get_type_hints

from factory.dataset.storage import Store
from factory.dataset.storage_errors import ignores_conditions
from factory.errors import LeaseHeldError, StoreUnavailableError, UserError, printable
from factory.files.decode import decode_json
from factory.files.processes import process_identity

LEASE = "lease.json"
BEAT = 10.0
"""Seconds between heartbeats."""
EXPIRES = 60.0
"""Seconds without a heartbeat after which a driver is considered dead."""
_TIMEOUT = EXPIRES / 3
"""Seconds after which a heartbeat repeats a request, so that a stalled connection does not make the lease expire."""
_POLL_INTERVAL = 1.0
_RELEASE_PATIENCE = 5.0
_SHOWN = 100
_held = set[str]()
"""The holders of the leases that this process has and has not released."""


@dataclass(frozen=True)
class Lease:
    """The driver that works on a dataset.

    `place` identifies the process, so that another process on the same machine can check whether it still runs. `beat`
    counts heartbeats. `updated` is only informational: a waiting driver watches `beat`, because the clocks of machines
    differ. `epoch` is 1 plus the number of consecutive takeovers from drivers that did not release the lease.
    """

    holder: str
    host: str
    pid: int
    place: str
    started: str
    updated: str
    beat: int = 0
    epoch: int = 0

    def to_json(self) -> bytes:
        """Serialise for `parse_lease`."""
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode()

    def started_after(self, time: datetime) -> bool:
        """Whether the driver started after a time; False if its own time is invalid."""
        try:
            return datetime.fromisoformat(self.started) > time
        except (ValueError, TypeError):
            return False

    @property
    def who(self) -> str:
        """A description for messages."""
        host, started = (printable(" ".join(text.split()))[:_SHOWN] for text in (self.host, self.started))
        return f"process {self.pid} on {host}, started at {started}"


_FIELD_TYPES = get_type_hints(Lease)


def parse_lease(data: bytes | None) -> Lease | None:
    """Parse a lease; None if there is none or it is invalid. An invalid lease protects nothing."""
    try:
        lease = None if data is None else Lease(**decode_json(data))
    except (ValueError, TypeError):
        return None
    valid = lease is not None and all(type(getattr(lease, name)) is kind for name, kind in _FIELD_TYPES.items())
    return lease if valid else None


def has_ended(lease: Lease) -> bool | None:
    """Whether the lease's driver has ended; None if it is hidden, on another machine, or in another PID namespace.

    It may also be an earlier driver of this process that could not delete its lease during an outage.
    """
    identity = process_identity(lease.pid)
    if not lease.place or not identity or lease.place.rpartition("/")[0] != identity.rpartition("/")[0]:
        return None
    return lease.place != identity or (lease.pid == os.getpid() and lease.holder not in _held)


def read_lease(store: Store) -> Lease | None:
    """The lease of a dataset; None if there is none or it is invalid."""
    return parse_lease(store.get(LEASE))


def is_stale(store: Store) -> bool | None:
    """Whether the dataset's lease belongs to a dead driver, judged by the clock; None if there is no lease."""
    lease = read_lease(store)
    if lease is None:
        return None
    ended = has_ended(lease)
    if ended is not None:
        return ended
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(lease.updated)
    except (ValueError, TypeError):
        return True
    return age.total_seconds() > EXPIRES + BEAT


class HeldLease:
    """A lease held by this process. `check` raises once another driver has taken it over or the store is gone."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self._store, self._lease, self._renewed = store, lease, _clock()
        self._loss, self.was_deleted = "", False
        self._unavailable: StoreUnavailableError | None = None
        self._renewing = threading.Lock()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LeaseHeldError if a heartbeat found that the lease was taken over; this run must then stop.

        Raises StoreUnavailableError if a heartbeat could not be written within the patience of the store.
        """
        if self._unavailable is not None:
            raise self._unavailable
        if self._loss:
            raise LeaseHeldError(
                f"another driver took over {self._store.address}: {self._loss}; this run stops, and its committed "
                f"shards are kept."
            )

    def confirm(self) -> None:
        """As `check`, but certain, for the moment before files are deleted or replaced.

        If heartbeats are late, because this process was stopped or the store did not respond, the lease is renewed
        first; this may block as long as other operations of the store.
        """
        if _clock() - self._renewed > 2 * BEAT:
            self._renew(self._store)
        self.check()

    @property
    def holder(self) -> str:
        """The identifier of this driver."""
        return self._lease.holder

    @property
    def epoch(self) -> int:
        """The epoch of this lease."""
        return self._lease.epoch

    @property
    def lost(self) -> bool:
        """Whether another driver has taken over the lease."""
        return bool(self._loss)

    def release(self) -> None:
        """Release the lease; best effort, because it expires anyway."""
        self._released.set()
        try:
            self._thread.join(1)
            if not self._loss:
                self._delete()
        finally:
            _held.discard(self._lease.holder)

    def _delete(self) -> None:
        store = self._store.with_patience(_RELEASE_PATIENCE)
        with suppress(UserError):
            # Compared by holder: in an outage, a heartbeat may have been written although its response was lost.
            current = parse_lease(store.get(LEASE))
            if current is not None and current.holder == self._lease.holder:
                store.delete(LEASE)

    def _beat(self) -> None:
        store = self._store.with_timeout(_TIMEOUT)
        while not self._loss and not self._released.wait(BEAT):
            try:
                self._renew(store)
            except StoreUnavailableError as error:
                self._unavailable = error  # workers only repeat their shards, so the run ends here
                return
            except UserError:
                continue  # a full disk, for instance; writing shards reports it

    def _renew(self, store: Store) -> None:
        """Write the lease with the next heartbeat, unless it was taken over or released."""
        with self._renewing:
            seen: bytes | None = self._lease.to_json()
            while not self._loss:
                now = _clock()
                renewed = replace(self._lease, beat=self._lease.beat + 1, updated=_now())
                if store.compare_and_swap(LEASE, renewed.to_json(), seen, durable=False):
                    self._lease, self._renewed = renewed, now
                    return
                seen = store.get(LEASE)
                current = parse_lease(seen)
                if current is None and self._released.is_set():
                    return  # the run has ended and deleted it
                if current is None and _clock() - self._renewed > EXPIRES:
                    self._loss = "it worked on the dataset, and ended, while this process was suspended or offline"
                elif current is not None and current.holder != self._lease.holder:
                    self._loss = current.who
                elif current is not None:
                    self._lease = current  # an earlier heartbeat was written although its response was lost
                else:  # no other driver works here: write it again
                    self.was_deleted = True


@contextmanager
def leased(store: Store, force: bool = False, log: Callable[[str], None] = lambda text: None) -> Iterator[HeldLease]:
    """Hold the dataset's lease within a `with` block.

    Raises LeaseHeldError if another driver is alive. If that is unknown, its heartbeat is watched for up to `EXPIRES`
    seconds. `force` takes over immediately; the other driver stops at its next heartbeat.
    """
    held = HeldLease(store, acquire(store, force, log))
    try:
        yield held
    finally:
        held.release()


def acquire(store: Store, force: bool = False, log: Callable[[str], None] = lambda text: None) -> Lease:
    """Acquire the lease as in `leased`, without starting a heartbeat.

    Raises UserError if the service ignores conditional writes, on which the lease and all other files depend.
    """
    while True:
        data = store.get(LEASE)
        current = parse_lease(data)
        if current is not None and not force:
            _wait_until_dead(store, current, log)
            data = store.get(LEASE)
            if parse_lease(data) not in (None, current):
                continue
        before = parse_lease(data)
        lease = _new_lease(epoch=1 if before is None else before.epoch + 1)
        _held.add(lease.holder)  # first: another thread must not take it for that of an earlier driver
        acquired = False
        try:
            if store.compare_and_swap(LEASE, lease.to_json(), data, durable=False):
                _check_conditional_writes(store, lease)
                acquired = True
                return lease
        finally:
            if not acquired:
                _held.discard(lease.holder)


def _check_conditional_writes(store: Store, lease: Lease) -> None:
    """Raise UserError if a bucket creates the existing lease again: two drivers could overwrite each other's files.

    Some services ignore the conditions of a request. The second attempt rules out that the lease was deleted meanwhile.
    """
    if store.folder is None and all(store.create(LEASE, lease.to_json()) for _ in range(2)):
        store.delete(LEASE)
        raise ignores_conditions(store.address, LEASE)


def _wait_until_dead(store: Store, lease: Lease, log: Callable[[str], None]) -> None:
    """Return when the driver is dead or its lease is gone; raise LeaseHeldError as soon as its heartbeat advances."""
    ended = has_ended(lease)
    if ended:
        return
    if ended is None:
        log(f"{lease.who} may still be working on {store.address}; watching its heartbeat for up to {EXPIRES:.0f} s.")
        # Counted in responses, not by a clock: while the store does not respond, the driver cannot renew its lease.
        for _ in range(math.ceil(EXPIRES / _POLL_INTERVAL)):
            time.sleep(_POLL_INTERVAL)
            current = parse_lease(store.get(LEASE))
            if current is None:
                return
            if current != lease:
                lease = current  # the same driver, or another one that was faster
                break
        else:
            return
    raise LeaseHeldError(
        f"another driver is working on {store.address}: {lease.who}. Wait until it has finished, stop it, or take over "
        f"with --force."
    )


def _new_lease(epoch: int) -> Lease:
    now, pid = _now(), os.getpid()
    return Lease(secrets.token_hex(8), socket.gethostname(), pid, process_identity(pid), now, now, epoch=epoch)


def _clock() -> float:
    """Seconds that also pass while the machine is suspended, if the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
