"""Runs the requests of a store: a client with the right timeout for each, retries, and clear errors."""

import contextlib
import importlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from factory.config.sections import StoreRecipe
from factory.dataset.storage_access import Access, find_access
from factory.dataset.storage_errors import translated_errors
from factory.dataset.storage_retry import Patience
from factory.errors import UserError

T = TypeVar("T")

_SMALL_REQUEST = 1 << 20
_first_process: int | None = None
"""The process that has made the first request."""


def in_fork() -> bool:
    """Whether this process is a fork of one that has made requests: the threads of the clients do not exist here."""
    return _first_process not in (None, os.getpid())


class Requests:
    """Runs requests on a folder or a bucket; `folder` is None for a bucket. It holds clients with their own threads."""

    def __init__(self, address: str, folder: Path | None, settings: StoreRecipe, access: Access | None) -> None:
        # Its submodules import the package: threads that import both at once can get it half initialized.
        importlib.import_module("obstore")
        self._address, self._folder, self._settings, self._access = address, folder, settings, access
        self._clients: dict[float | None, Any] = {}
        self._lock = threading.Lock()
        self.patience = Patience(address, settings.patience)

    def with_patience(self, seconds: float) -> "Requests":
        """The same clients with less patience and without messages."""
        requests = Requests(self._address, self._folder, self._settings, self._access)
        requests._clients = self._clients
        requests.patience = Patience(self._address, min(seconds, self._settings.patience), proven=True, quiet=True)
        return requests

    def with_settings(self, settings: StoreRecipe) -> "Requests":
        """The same clients and the same patience with other settings."""
        requests = Requests(self._address, self._folder, settings, self._access)
        requests._clients, requests.patience = self._clients, self.patience
        return requests

    def run(self, name: str, action: Callable[[Any], T], size: int = 0, writes: bool = False, reads: bool = False) -> T:
        """Run an action on a client, retry temporary failures, and turn other errors into clear messages.

        Reads have no known size, so they time out when no more data arrives; other requests have a timeout that depends
        on their size.
        """
        timeout = None if reads else self._timeout(size)
        with self.translated_errors(name, writes):
            return self.patience.persist(lambda: action(self._connect(timeout)), self.hide)

    def translated_errors(self, name: str, writes: bool) -> contextlib.AbstractContextManager[None]:
        """Turn errors of a request for `name` into clear messages."""
        where = f"{self._address.rstrip('/')}/{name}"
        return translated_errors(where, self._folder is None, writes, self.hide, self.patience.proven)

    def hide(self, text: str) -> str:
        """Redact the credentials in a text."""
        return text if self._access is None else self._access.hide(text)

    def access(self) -> Access:
        """The access to the bucket, which is resolved once."""
        with self._lock:
            if self._access is None:
                self._access = find_access(self._address, self._settings)
            return self._access

    def _timeout(self, size: int) -> float:
        """Timeout of a request. Sizes are rounded up to powers of two, because each timeout requires its own client."""
        rounded = 1 << (size - 1).bit_length() if size > _SMALL_REQUEST else 0
        return self._settings.timeout + rounded / self._settings.slowest

    def _connect(self, timeout: float | None) -> Any:
        global _first_process
        if in_fork():  # a request would never return
            raise UserError(
                f"{self._address} cannot be opened in a forked process; open it before the fork if it is a local "
                f"folder, or start processes with the method spawn: DataLoader(..., multiprocessing_context='spawn')."
            )
        _first_process = os.getpid()
        if self._folder is not None:
            timeout = None
        client = self._clients.get(timeout)
        if client is None:
            from obstore.store import LocalStore

            if self._folder is not None:
                client = LocalStore(self._folder, mkdir=True)
            else:
                client = self.access().build(self._address, timeout)
            self._clients[timeout] = client
        return client
