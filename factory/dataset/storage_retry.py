"""Which trouble of a bucket passes, and how long a store tries again."""

import logging
import random
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from factory.errors import StoreUnavailableError

T = TypeVar("T")

_log = logging.getLogger("factory.dataset.storage")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_UNPROVEN = 30.0
"""Seconds of patience with a store that never answered: an address mistyped is more likely than an outage."""
_WORTH_A_WORD = 5.0
_PASSES = re.compile(r"HTTP error: (?!builder)|status code: (?:5\d\d|408|409|425|429)\b")
_CREDENTIALS = re.compile(r"Error performing token request|credential error|http://169\.254\.")
_NETWORK_DISK = re.compile(r"\(os error (?:110|116)\)")
"""Timed out, stale handle: NFS."""
_PAGE = re.compile(r"\s*\ufeff?<(?:\?xml|!doctype|html)", re.IGNORECASE)
_NO_BUCKET = re.compile(r"<Code>(?:NoSuchBucket|ContainerNotFound)</Code>")


def passes(error: Exception, proven: bool) -> bool:
    """Whether the same request may succeed later. `proven`: the store has answered before, so its address is right.

    Resets, cut answers, time-outs, 5xx and "slow down" pass. A refusal (403), a wrong region or an endpoint that is no
    URL do not; neither do credentials that cannot be had, unless there were some before.
    """
    from obstore.exceptions import GenericError

    if not isinstance(error, GenericError):
        return False
    said = first_line(error)
    if said.startswith("Generic LocalFileSystem"):
        return _NETWORK_DISK.search(said) is not None
    if _CREDENTIALS.search(said):
        return proven
    return _PASSES.search(said) is not None


def first_line(error: Exception) -> str:
    """What the client says, without its debugging text, and of a page that a service sent only its message."""
    said = str(error).split("\n\nDebug source:")[0]
    page = _PAGE.search(said)
    line = (said[: page.start()] if page else said).split("\n")[0].strip()
    message = re.search(r"<Message>\s*(.*?)\s*</Message>", said[page.start() :], re.DOTALL) if page else None
    if page:
        line = line.removesuffix(":") + (f": {message[1]}" if message and message[1] else "")
    return " ".join(line.split())[:300].removesuffix(".")


def names_no_bucket(error: Exception) -> bool:
    """Whether the service says that the bucket itself is missing, not only a name in it."""
    return _NO_BUCKET.search(str(error)) is not None


class Patience:
    """Repeats what fails in passing, with growing pauses. `trouble` is a sentence while the store does not answer."""

    def __init__(self, address: str, seconds: float, proven: bool = False, quiet: bool = False) -> None:
        self._address, self._seconds, self.proven, self._quiet = address, seconds, proven, quiet
        self._waiting: dict[int, str] = {}
        self._lock = threading.Lock()

    @property
    def trouble(self) -> str | None:
        """What keeps the calls that wait just now; None where all is well or another call came through meanwhile."""
        with self._lock:
            return next(iter(self._waiting.values()), None)

    def persist(self, action: Callable[[], T], hide: Callable[[str], str]) -> T:
        """The result of `action`; `StoreUnavailableError` when it failed in passing for longer than allowed."""
        began, pause = time.monotonic(), _FIRST_PAUSE
        try:
            while True:
                try:
                    result = action()
                except Exception as error:
                    if not passes(error, self.proven):
                        raise
                    waited = time.monotonic() - began
                    limit = self._seconds if self.proven else min(self._seconds, _UNPROVEN)
                    if waited >= limit:
                        raise self._given_up(waited, hide(first_line(error))) from None
                    if waited > _WORTH_A_WORD:
                        self._say(hide(first_line(error)), limit)
                    time.sleep(min(pause * random.uniform(0.5, 1.5), max(0.05, limit - waited)))
                    pause = min(pause * 2, _LONGEST_PAUSE)
                else:
                    self._answered()
                    return result
        finally:
            with self._lock:
                self._waiting.pop(threading.get_ident(), None)

    def _answered(self) -> None:
        self.proven = True
        if self._waiting:
            with self._lock:
                self._waiting.clear()
            if not self._quiet:
                _log.warning("%s answers again.", self._address)

    def _say(self, said: str, limit: float) -> None:
        sentence = (
            f"{self._address} does not answer ({said}); waiting for up to {_duration(limit)}, nothing that is "
            f"committed is lost."
        )
        with self._lock:
            known = bool(self._waiting)
            self._waiting[threading.get_ident()] = sentence
        if not known and not self._quiet:
            _log.warning("%s", sentence)

    def _given_up(self, waited: float, said: str) -> StoreUnavailableError:
        check = "everything committed before is kept; run the same command again when it answers"
        if not self.proven:
            check = "check the address, the endpoint, the network and the credentials (docs/storage.md)"
        return StoreUnavailableError(f"{self._address} did not answer for {_duration(waited)}: {said}; {check}.")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
