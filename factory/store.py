"""Where a set lives: a folder or a bucket behind five verbs. A write is there whole or not at all."""

import contextlib
import fcntl
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from factory.errors import TransientError, UserError

REMOTE_SCHEMES = ("s3", "gs", "az", "http", "https")


class StoreFullError(TransientError):
    """The disk or bucket takes no more; nothing that was committed is lost."""


class ConflictError(Exception):
    """Other bytes are there, though bytes are a function of the recipe: an alarm, never overwritten."""


class Store:
    """Five verbs over names like "train/000000.tar", below one folder or URL.

    A store holds a client with threads of its own: build it in the process that uses it, do not carry it over a fork.
    It pickles as its address.
    """

    def __init__(self, address: str) -> None:
        """`address` is a folder, or a URL such as s3://bucket/prefix. Nothing is touched until the first verb."""
        self.address = address
        self.folder = None if is_remote(address) else Path(address.removeprefix("file://")).absolute()
        self._client: Any = None

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.address,)

    def create(self, name: str, data: bytes) -> bool:
        """Write `data` if there is no `name` yet; False where there is one, which stays as it is."""
        from obstore.exceptions import AlreadyExistsError

        try:
            with self._sentences(name):
                self._connect().put(name, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def create_same(self, name: str, data: bytes) -> None:
        """Write `data`, or find the same bytes already there; `ConflictError` where there are others."""
        if self.create(name, data):
            return
        there = hashlib.sha256(self.get(name) or b"").hexdigest()
        mine = hashlib.sha256(data).hexdigest()
        if there != mine:
            raise ConflictError(
                f"{self.address}/{name} exists with sha256 {there[:12]}, but this worker made {mine[:12]} from the "
                f"same plan; the machines or library versions differ. Check with `factory verify`."
            )

    def swap(self, name: str, data: bytes, seen: bytes | None) -> bool:
        """Replace the content `seen` (None: no such name) by `data`; False where somebody else was faster."""
        if self.folder is not None:
            return self._swap_file(name, data, seen)
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            with self._sentences(name):
                if seen is None:
                    self._connect().put(name, data, mode="create")
                    return True
                there = self._connect().get(name)
                if bytes(there.bytes()) != seen:
                    return False
                self._connect().put(name, data, mode={"e_tag": there.meta["e_tag"]})
                return True
        except (AlreadyExistsError, PreconditionError, FileNotFoundError):
            return False

    def get(self, name: str) -> bytes | None:
        """The content, or None where there is no such name; reading makes no folder."""
        if self.folder is not None and not self.folder.is_dir():
            return None
        try:
            with self._sentences(name):
                return bytes(self._connect().get(name).bytes())
        except FileNotFoundError:
            return None

    def list(self, prefix: str) -> dict[str, int]:
        """Every name in the folder `prefix` ("" for all) with its size in bytes; half-written files are not there."""
        if self.folder is not None and not (self.folder / prefix).is_dir():
            return {}
        with self._sentences(prefix):
            rows = [(row["path"], row["size"]) for chunk in self._connect().list(prefix or None) for row in chunk]
        return {name: size for name, size in sorted(rows) if not re.search(r"#\d+$", name)}

    def delete(self, name: str) -> None:
        """Remove `name`; it need not exist."""
        if self.folder is not None and not self.folder.is_dir():
            return
        with contextlib.suppress(FileNotFoundError), self._sentences(name):
            self._connect().delete(name)

    def _connect(self) -> Any:
        if self._client is None:
            from obstore.store import LocalStore, from_url

            if self.folder is not None:
                self._client = LocalStore(self.folder, mkdir=True)
            else:
                self._client = from_url(self.address)
        return self._client

    def _swap_file(self, name: str, data: bytes, seen: bytes | None) -> bool:
        """The local store has no conditional replace: take turns under a lock beside the folder's content."""
        assert self.folder is not None
        with self._sentences(name):
            self._connect()
            with open(self.folder / ".lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self.get(name) != seen:
                    return False
                self._connect().put(name, data)
                return True

    @contextlib.contextmanager
    def _sentences(self, name: str) -> Iterator[None]:
        """Turn what the storage says into a sentence for the one who chose it."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            yield
        except (AlreadyExistsError, PreconditionError, FileNotFoundError, UserError):
            raise
        except (BaseError, OSError) as error:
            said = str(error).split("\n")[0]
            where = f"{self.address.rstrip('/')}/{name}"
            if "os error 28" in said or "os error 122" in said or getattr(error, "errno", 0) in (28, 122):
                raise StoreFullError(
                    f"there is no room left for {where}; everything committed before is kept. "
                    f"Make room and run the same command again: it resumes."
                ) from error
            told = f"cannot use {where}: {said}. Give a folder or bucket that can be read and written."
            raise UserError(told) from error


def is_remote(address: str) -> bool:
    """Whether an address names a bucket rather than a folder; UserError for a scheme that no store has."""
    scheme = urlparse(address).scheme
    if scheme in REMOTE_SCHEMES:
        return True
    if scheme in ("", "file") or (sys.platform == "win32" and len(scheme) == 1) or os.path.exists(address):
        return False
    raise UserError(f"no storage speaks {scheme}://, got {address}; give a folder or {', '.join(REMOTE_SCHEMES)}.")


def absolute(addresses: Iterable[str]) -> tuple[str, ...]:
    """Addresses that mean the same in every process, whatever folder it runs in."""
    return tuple(address if is_remote(address) else str(Store(address).folder) for address in addresses)
