"""One driver at a time on a dataset: a lease in the dataset itself, renewed by a heartbeat."""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from factory.dataset.storage import Store
from factory.errors import LeaseHeldError, UserError

LEASE = "lease.json"
BEAT = 10.0
"""Seconds between two heartbeats."""
EXPIRES = 60.0
"""Seconds without a heartbeat after which a driver counts as dead."""
_LOOK = 1.0
_LAST_WORDS = 5.0


@dataclass(frozen=True)
class Lease:
    """Who works on the dataset. `place` tells whether the process can be looked up from here; `beat` counts heartbeats.

    `updated` is for people: whether a lease is alive is judged by watching `beat`, for clocks of machines differ.
    """

    holder: str
    host: str
    pid: int
    place: str
    started: str
    updated: str
    beat: int = 0

    def to_json(self) -> bytes:
        """As `read_lease` reads it."""
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode()

    @property
    def who(self) -> str:
        """For a sentence."""
        return f"process {self.pid} on {self.host}, started at {self.started}"


def parse_lease(data: bytes | None) -> Lease | None:
    """None where there is none, or where what is there is no lease: it protects nothing."""
    try:
        return None if data is None else Lease(**json.loads(data))
    except (ValueError, TypeError):
        return None


def dead(lease: Lease) -> bool | None:
    """Whether the lease's process is gone; None where this cannot be seen from here."""
    if not lease.place or lease.place.rpartition("/")[0] != _place(lease.pid).rpartition("/")[0]:
        return None
    return lease.place != _place(lease.pid)


def stale(store: Store) -> bool | None:
    """Whether the dataset's lease is of a driver that died; None where there is no lease. By the clock, at once."""
    lease = parse_lease(store.get(LEASE))
    if lease is None:
        return None
    gone = dead(lease)
    if gone is not None:
        return gone
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(lease.updated)
    except (ValueError, TypeError):
        return True
    return age.total_seconds() > EXPIRES + BEAT


class HeldLease:
    """A lease that this process holds. `check` raises once another driver has taken it over."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self._store, self._lease = store, lease
        self._taken: Lease | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """LeaseHeldError where the lease was taken over: this run ends, and the other one goes on."""
        if self._taken is not None:
            raise LeaseHeldError(
                f"another driver took over {self._store.address}: {self._taken.who}; this one ends, and what it "
                f"committed is kept."
            )

    @property
    def lost(self) -> bool:
        """Whether another driver has the lease now."""
        return self._taken is not None

    def release(self) -> None:
        """Give the lease back; best effort, for it expires by itself."""
        self._over.set()
        self._thread.join(1)
        if self._taken is None and not self._thread.is_alive():
            brief = self._store.with_patience(_LAST_WORDS)
            with suppress(UserError):
                if brief.get(LEASE) == self._lease.to_json():
                    brief.delete(LEASE)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            later = replace(self._lease, beat=self._lease.beat + 1, updated=_now())
            try:
                if self._store.compare_and_swap(LEASE, later.to_json(), self._lease.to_json()):
                    self._lease = later
                    continue
                there = parse_lease(self._store.get(LEASE))
                if there is None:
                    # Somebody tidied up; nobody else works here, so it is still this driver's.
                    self._store.compare_and_swap(LEASE, self._lease.to_json(), None)
                    continue
            except UserError:
                continue  # an outage, or a full disk: whoever writes shards says so
            if there.holder != self._lease.holder:
                self._taken = there
                return


@contextmanager
def leased(store: Store, force: bool = False, say: Callable[[str], None] = lambda text: None) -> Iterator[HeldLease]:
    """Hold the dataset's lease for the time of the `with`.

    LeaseHeldError names a driver that is alive. One that seems dead is watched until its heartbeat has been missing for
    `EXPIRES` seconds; `force` takes over at once, and the other driver ends at its next heartbeat.
    """
    held = HeldLease(store, acquire(store, force, say))
    try:
        yield held
    finally:
        held.release()


def acquire(store: Store, force: bool = False, say: Callable[[str], None] = lambda text: None) -> Lease:
    """As `leased`, without the heartbeat."""
    while True:
        data = store.get(LEASE)
        there = parse_lease(data)
        if there is not None and not force:
            _wait_for_death(store, there, say)
            data = store.get(LEASE)
            if parse_lease(data) not in (None, there):
                continue
        mine = _new_lease()
        if store.compare_and_swap(LEASE, mine.to_json(), data):
            return mine


def _wait_for_death(store: Store, there: Lease, say: Callable[[str], None]) -> None:
    """Returns when the driver is dead or its lease is gone; LeaseHeldError as soon as it shows a sign of life."""
    gone = dead(there)
    if gone:
        return
    if gone is None:
        say(f"{there.who} may still work on {store.address}; watching its heartbeat for up to {EXPIRES:.0f} s.")
        began = time.monotonic()
        while time.monotonic() - began < EXPIRES:
            time.sleep(_LOOK)
            now = parse_lease(store.get(LEASE))
            if now is None:
                return
            if now != there:
                break
        else:
            return
    raise LeaseHeldError(
        f"another driver works on {store.address}: {there.who}. Wait until it is done, stop it, or take over with "
        f"--force."
    )


def _new_lease() -> Lease:
    now = _now()
    return Lease(secrets.token_hex(8), socket.gethostname(), os.getpid(), _place(os.getpid()), now, now)


def _place(pid: int) -> str:
    """Boot, process namespace and start time of a process, as boot/namespace/start; "" where the system hides them."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as stream:
            boot = stream.read().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            # After the command in brackets; the state is the third field, the start time the 22nd.
            fields: list[Any] = stream.read().rpartition(")")[2].split()
        start = "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        start = ""
    return f"{boot}/{space}/{start}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
