"""Which storage failures are temporary, and how long a store retries them."""

import errno
import logging
import random
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from factory import metrics
from factory.errors import StoreUnavailableError

T = TypeVar("T")

_log = logging.getLogger("factory.dataset.storage")
_FIRST_PAUSE, _MAX_PAUSE = 0.1, 10.0
_UNPROVEN_PATIENCE = 30.0
"""Seconds for which requests to a store that has never responded are retried: its address is probably wrong."""
_WARN_AFTER = 5.0
_TEMPORARY = re.compile(
    r"HTTP error: (?!builder)|status code: (?:5(?!01|05)\d\d|408|409|425|429)\b|returned error response"
)
"""Temporary errors in messages of the client. The last one is an error at the end of a multipart upload to S3, whose
response has the status 200."""
_DISTURBED = re.compile(r"<Code>(?:RequestTimeout|IncompleteBody|BadDigest)</Code>")
"""The answers (400) of S3 to a request that stalled on its way, or arrived incomplete or changed."""
_CONFLICT = re.compile(r"<Code>(?:ConditionalRequestConflict|OperationAborted)</Code>")
"""The answers (409) of S3 to a conditional write during another write of the file, such as one that timed out here. The
client takes them for "already exists"."""
_FULL = re.compile(r"<Code>(?:XMinioStorageFull|QuotaExceeded|XMinioAdminBucketQuotaExceeded)</Code>|^507")
"""The answers of S3 services to a write for which a disk or a quota has no space: MinIO and Ceph; 507 is of HTTP."""
_CREDENTIALS = re.compile(r"Error performing token request|credential error|http://169\.254\.")
_CLOCK = re.compile(r"<Code>RequestTimeTooSkewed</Code>|Request date header too old")
"""The answers of S3 and Azure to a request whose date is wrong."""
_EXPIRED = re.compile(
    r"<Code>(?:ExpiredToken(?:Exception)?|TokenRefreshRequired|RequestExpired)</Code>"
    r"|not valid in the specified time frame|The token is expired"
)
"""The answers of S3 and Azure to credentials that have expired."""
_NFS = (errno.ETIMEDOUT, errno.ESTALE)
"""Timeout and stale file handle of network file systems."""
_NFS_ERROR = re.compile(rf"\(os error (?:{'|'.join(map(str, _NFS))})\)")
_MARKUP = re.compile(r"\s*\ufeff?<(?:\?xml|!doctype|html)", re.IGNORECASE)
_NO_BUCKET = re.compile(r"<Code>(?:NoSuchBucket|ContainerNotFound)</Code>")


def is_temporary(error: Exception, proven: bool) -> bool:
    """Whether the same request may succeed later. `proven`: the store has responded before, so its address is valid.

    Connection resets, truncated requests and responses, timeouts, 5xx, "slow down", conflicts and a wrong clock are
    temporary. Access denied (403), expired credentials, a full bucket (507), a request that the service does not
    implement (501), a wrong region and an invalid endpoint URL are not. Missing credentials are temporary only if there
    were some before.
    """
    from obstore.exceptions import GenericError

    if is_full(error):
        return False
    answer = _answer(error)
    if has_wrong_clock(error) or _DISTURBED.search(answer) or _CONFLICT.search(answer):
        return True
    if isinstance(error, OSError) and error.errno in _NFS:
        return True  # from a call outside the client, such as `fsync`
    if not isinstance(error, GenericError):
        return False
    message = first_line(error)
    if message.startswith("Generic LocalFileSystem"):
        return _NFS_ERROR.search(message) is not None
    if has_no_credentials(error):
        return proven
    return _TEMPORARY.search(message) is not None


def first_line(error: Exception) -> str:
    """The client's message without its debug text; of an XML or HTML response, only the message element."""
    text = _text(error)
    markup = _MARKUP.search(text)
    line = (text[: markup.start()] if markup else text).split("\n")[0].strip()
    message = re.search(r"<Message>\s*(.*?)\s*</Message>", text[markup.start() :], re.DOTALL) if markup else None
    if markup:
        line = line.removesuffix(":") + (f": {message[1]}" if message and message[1] else "")
    return " ".join(line.split())[:300].removesuffix(".")


def names_no_bucket(error: Exception) -> bool:
    """Whether the service reports that the bucket itself does not exist."""
    return _NO_BUCKET.search(str(error)) is not None


def is_full(error: Exception) -> bool:
    """Whether the service reports that its disks or a quota are full."""
    return _FULL.search(_answer(error)) is not None


def has_wrong_clock(error: Exception) -> bool:
    """Whether the service rejects the time of the request: the clock of this host is wrong."""
    return _CLOCK.search(_answer(error)) is not None


def has_no_credentials(error: Exception) -> bool:
    """Whether the client found no credentials: it asked the machine for its role, or a service for a token, in vain."""
    return _CREDENTIALS.search(first_line(error)) is not None


def has_expired_credentials(error: Exception, proven: bool) -> bool:
    """Whether the service reports expired credentials, or does not know them any more although it accepted some."""
    answer = _answer(error)
    return _EXPIRED.search(answer) is not None or (proven and answer.startswith("401"))


def _text(error: Exception) -> str:
    return str(error).split("\n\nDebug source:")[0]


def _answer(error: Exception) -> str:
    """The status and the body of the response in a client's error; empty if there is none."""
    return _text(error).partition("status code: ")[2]


class Patience:
    """Retries temporary failures with exponential backoff."""

    def __init__(self, address: str, seconds: float, proven: bool = False, quiet: bool = False) -> None:
        self._address, self._seconds, self.proven, self._quiet = address, seconds, proven, quiet
        self._waiting: dict[int, str] = {}
        self._lock = threading.Lock()

    @property
    def trouble(self) -> str | None:
        """A message while calls wait for the store; None if there are none, or another call succeeded meanwhile."""
        with self._lock:
            return next(iter(self._waiting.values()), None)

    def persist(self, action: Callable[[], T], hide: Callable[[str], str]) -> T:
        """Run `action` until it succeeds; raises `StoreUnavailableError` if temporary failures last too long."""
        start, pause = time.monotonic(), _FIRST_PAUSE
        try:
            while True:
                try:
                    result = action()
                except Exception as error:
                    if not is_temporary(error, self.proven):
                        raise
                    waited = time.monotonic() - start
                    limit = self._seconds if self.proven else min(self._seconds, _UNPROVEN_PATIENCE)
                    if waited >= limit:
                        raise self._timed_out(waited, error, hide) from None
                    metrics.STORE_RETRIES.add(1, self._address)
                    if waited > _WARN_AFTER:
                        self._warn(error, hide, limit)
                    time.sleep(min(pause * random.uniform(0.5, 1.5), max(0.05, limit - waited)))
                    pause = min(pause * 2, _MAX_PAUSE)
                else:
                    self._recovered()
                    return result
        finally:
            with self._lock:
                self._waiting.pop(threading.get_ident(), None)

    def _recovered(self) -> None:
        self.proven = True
        if self._waiting:
            with self._lock:
                self._waiting.clear()
            if not self._quiet:
                _log.warning("%s responds again.", self._address)

    def _warn(self, error: Exception, hide: Callable[[str], str], limit: float) -> None:
        state = f"rejects the clock of {socket.gethostname()}" if has_wrong_clock(error) else "does not respond"
        warning = (
            f"{self._address} {state} ({hide(first_line(error))}); retrying for up to {_duration(limit)}, committed "
            f"shards are kept."
        )
        with self._lock:
            known = bool(self._waiting)
            self._waiting[threading.get_ident()] = warning
        if not known and not self._quiet:
            _log.warning("%s", warning)

    def _timed_out(self, waited: float, error: Exception, hide: Callable[[str], str]) -> StoreUnavailableError:
        state = "did not respond"
        hint = "committed shards are kept; rerun the same command when it responds again"
        if has_wrong_clock(error):
            state = f"rejected the clock of {socket.gethostname()}"
            hint = "set the clock of that host (NTP), and rerun the same command"
        elif not self.proven:
            hint = "check the address, the endpoint, the network and the credentials (docs/storage.md)"
        return StoreUnavailableError(
            f"{self._address} {state} for {_duration(waited)}: {hide(first_line(error))}; {hint}."
        )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
