"""Dataset storage: a folder or a bucket behind a few atomic operations. Writes are all or nothing."""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from factory.config.sections import StoreRecipe
from factory.dataset.ordered_map import ordered_map
from factory.dataset.storage_access import Access, check_address, is_remote, with_environment
from factory.dataset.storage_errors import StoreFullError, UnreadableError, never_created
from factory.dataset.storage_folder import TEMPORARY, FolderWrites
from factory.dataset.storage_listing import Entry, list_bucket, list_folder, tag_of
from factory.dataset.storage_requests import Requests, in_fork
from factory.errors import UserError, command
from factory.files.listing import names_in
from factory.files.paths import in_home, without_file_scheme

__all__ = ["ConflictError", "Store", "StoreFullError", "absolute", "is_remote"]

_READERS = 128
_PART, _MAX_PARTS = 16 << 20, 5000
_DELETED_AT_ONCE = 1000
_CONFLICT_TIMEOUT, _FIRST_PAUSE = 30.0, 0.05
"""Seconds for which a conflict is retried, and before the first retry."""


class ConflictError(Exception):
    """A file exists with other bytes, although the recipe determines the bytes. It is not overwritten."""


class Store:
    """Operations on names such as "train/000000.tar" below a folder or URL.

    A store holds clients with their own threads, which do not survive a fork: a forked process can only read files of a
    folder, and other operations raise UserError. It pickles as its address, its settings and the resolved access, so
    that a worker can reach what the driver reaches, also from another working directory. Every operation retries
    temporary failures for up to `settings.patience` seconds and then raises `StoreUnavailableError`.
    """

    def __init__(self, address: str, settings: StoreRecipe | None = None, access: Access | None = None) -> None:
        """`address` is a folder or a URL such as s3://bucket/prefix. Nothing is accessed until the first operation."""
        if not address.strip():
            raise UserError("the address of a dataset is empty; give a folder (. for the current one) or a URL.")
        remote = is_remote(address)
        if remote:
            check_address(address)
        self.address = address
        self.settings = with_environment(settings or StoreRecipe())
        self.folder = None if remote else in_home(without_file_scheme(address)).absolute()
        self._folder_writes = None if self.folder is None else FolderWrites(self.folder)
        self._requests = Requests(address, self.folder, self.settings, access)

    def __reduce__(self) -> tuple[Callable[..., "Store"], tuple[Any, ...]]:
        access = self._requests.access() if self.folder is None else None
        address = self.address if self.folder is None else str(self.folder)
        return _unpickle, (address, self.settings, access, self._requests.patience.proven)

    def address_of(self, name: str) -> str:
        """The path or URL of a file or folder in the store."""
        return f"{self.address.rstrip('/')}/{name}"

    def below(self, folder: str) -> "Store":
        """The store of a folder in this one."""
        return Store(self.address_of(folder), self.settings)

    def with_patience(self, seconds: float) -> "Store":
        """The same store with less patience, for best-effort operations."""
        store = Store(self.address, self.settings)
        store._requests = self._requests.with_patience(seconds)
        return store

    def with_timeout(self, seconds: float) -> "Store":
        """The same store with a shorter timeout for small requests, for those that must not stall."""
        settings = self.settings.model_copy(update={"timeout": min(seconds, self.settings.timeout)})
        store = Store(self.address, settings)
        store._requests = self._requests.with_settings(settings)
        return store

    @property
    def trouble(self) -> str | None:
        """A message while calls wait for a bucket that does not respond; otherwise None."""
        return self._requests.patience.trouble

    def hide(self, text: str) -> str:
        """Hide the credentials of the store in a text."""
        return self._requests.hide(text)

    def create(self, name: str, data: bytes) -> bool:
        """Write `data` unless `name` exists; returns False, without changing it, if it does.

        In both cases, the file then survives a power failure.
        """
        from obstore.exceptions import AlreadyExistsError

        def put(client: Any) -> bool:
            if self._folder_writes is not None:
                return self._folder_writes.create(name, data)
            client.put(name, data, mode="create", use_multipart=False)
            return True

        try:
            return self._requests.run(name, put, len(data), writes=True)
        except AlreadyExistsError:
            return False

    def create_or_get(self, name: str, data: bytes) -> bytes:
        """Write `data` unless `name` exists; returns what is stored then.

        There may be no file although `create` returned False: a service may answer "conflict" (409) to a request that
        it did not carry out because of another one, and the file may have been deleted meanwhile.
        """
        end, pause = time.monotonic() + _CONFLICT_TIMEOUT, _FIRST_PAUSE
        while not self.create(name, data):
            existing = self.get(name)
            if existing is not None:
                return existing
            if time.monotonic() > end:
                raise never_created(self.address, name)
            time.sleep(pause)
            pause *= 2
        return data

    def create_same(self, name: str, data: bytes) -> None:
        """Write `data` unless the same bytes already exist; raises `ConflictError` if other bytes exist."""
        stored = self.create_or_get(name, data)
        if stored != data:
            existing, new = hashlib.sha256(stored).hexdigest(), hashlib.sha256(data).hexdigest()
            raise ConflictError(
                f"{self.address_of(name)} exists with the SHA-256 {existing[:12]}, but this worker generated "
                f"{new[:12]}: another kind of machine or other library versions wrote the file, or it is incomplete. "
                f"If no other run is working on this dataset, {command('verify', self.address, '--repair')} deletes it "
                f"and generates the shard again."
            )

    def compare_and_swap(self, name: str, data: bytes, seen: bytes | None, durable: bool = True) -> bool:
        """Replace the content `seen` (None: does not exist) with `data`; False if another writer was faster.

        If the response to a successful write is lost, the retry recognises the write by its content. Without `durable`,
        the write does not wait for the disk of a folder, and a power failure may undo it.
        """
        if (folder := self._folder_writes) is not None:
            with self._requests.translated_errors(name, writes=True), folder.locked() as is_held:
                if self.get(name) != seen:
                    return False
                return self._requests.run(name, lambda _: folder.replace(name, data, durable, is_held), writes=True)
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        if seen is None:
            return self.create(name, data) or self.get(name) == data
        try:
            content, meta = self._requests.run(name, lambda client: _with_meta(client.get(name)))
            if content != seen:
                return content == data
            # Google Cloud compares the version, S3 the tag.
            mode = {key: meta[key] for key in ("e_tag", "version") if meta.get(key) is not None}
            self._requests.run(
                name, lambda client: client.put(name, data, mode=mode, use_multipart=False), len(data), writes=True
            )
        except FileNotFoundError:
            return False
        except (AlreadyExistsError, PreconditionError):
            return self.get(name) == data
        return True

    def put(self, name: str, data: bytes) -> None:
        """Write `data`, replacing existing content; for derived data such as progress. The last writer wins."""
        # In a single request: otherwise, the client sends more than 5 MB in parts, each with its own timeout.
        self._requests.run(
            name, lambda client: client.put(name, data, mode="overwrite", use_multipart=False), len(data), writes=True
        )

    def put_file(self, name: str, path: Path) -> None:
        """Write a local file, replacing existing content. A large one is sent in parts, so memory does not grow."""
        size = path.stat().st_size
        part = max(_PART, size // _MAX_PARTS)
        self._requests.run(
            name,
            lambda client: client.put(name, path, mode="overwrite", chunk_size=part, max_concurrency=2),
            min(size, part),
            writes=True,
        )

    def get(self, name: str) -> bytes | None:
        """Read the content; None if the name does not exist. Reading never creates a folder."""
        if self.folder is not None and in_fork():
            with self._requests.translated_errors(name, writes=False), contextlib.suppress(FileNotFoundError):
                return (self.folder / name).read_bytes()
            return None
        tagged = self.get_tagged(name)
        return None if tagged is None else tagged[0]

    def get_tagged(self, name: str) -> tuple[bytes, str] | None:
        """Read the content and its tag as in a listing; None if the name does not exist."""
        if self.folder is not None and not self.folder.is_dir():
            return None
        try:
            data, meta = self._requests.run(name, lambda client: _with_meta(client.get(name)), reads=True)
        except FileNotFoundError:
            return None
        return data, tag_of(meta)

    def get_derived(self, name: str) -> bytes | None:
        """As `get`, for a file that a run can write again: None also if the disk cannot read it."""
        with contextlib.suppress(UnreadableError):
            return self.get(name)
        return None

    def get_many(self, names: Iterable[str], derived: bool = False) -> Iterator[tuple[str, tuple[bytes, str] | None]]:
        """Read many names concurrently; yields (name, (content, tag) or None) in order with bounded memory.

        With `derived`, files that the disk cannot read are None as well.
        """

        def read(name: str) -> tuple[bytes, str] | None:
            try:
                return self.get_tagged(name)
            except UnreadableError:
                if derived:
                    return None
                raise

        return ordered_map(read, names, _READERS, ahead=8 * _READERS, name="readers")

    def list(self, prefix: str) -> dict[str, int]:
        """All names in the folder `prefix` ("" for all) with their sizes in bytes, without partially written files."""
        return {name: entry.size for name, entry in self.entries(prefix).items()}

    def entries(self, prefix: str, limit: int | None = None, bounds: Sequence[str] = ()) -> dict[str, Entry]:
        """Like `list`, with tags and an optional limit; see `list_bucket` for `bounds`."""

        def run(action: Callable[[Any], None]) -> None:
            self._requests.run(prefix, action)

        if self.folder is not None:
            entries = list_folder(run, self.folder, prefix, limit)
        else:
            in_order = self._requests.access().lists_in_order
            entries = list_bucket(run, urlparse(self.address).scheme, prefix, limit, bounds, in_order)
        return {name: entries[name] for name in sorted(entries) if not TEMPORARY.search(name)}

    def folders(self) -> Sequence[str]:
        """The names of the folders directly in the store, sorted; files deeper down are not listed."""
        if self.folder is not None:
            with self._requests.translated_errors("", writes=False):
                return [name for name in names_in(self.folder) if (self.folder / name).is_dir()]
        prefixes = self._requests.run("", lambda client: client.list_with_delimiter())["common_prefixes"]
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in prefixes)

    def delete_all(self, names: Iterable[str]) -> None:
        """Delete many names; those that do not exist are ignored."""
        remaining = sorted(names)
        while remaining:
            batch, remaining = remaining[:_DELETED_AT_ONCE], remaining[_DELETED_AT_ONCE:]
            try:
                self._requests.run(batch[0], partial(_delete, batch))
            except FileNotFoundError:
                for name in batch:
                    self.delete(name)

    def delete(self, name: str) -> None:
        """Delete `name` if it exists."""
        if self.folder is not None and not self.folder.is_dir():
            return
        with contextlib.suppress(FileNotFoundError):
            self._requests.run(name, lambda client: client.delete(name))


def _unpickle(address: str, settings: StoreRecipe, access: Access | None, proven: bool) -> Store:
    store = Store(address, settings, access)
    store._requests.patience.proven = proven
    return store


def _delete(names: Sequence[str], client: Any) -> None:
    client.delete(names)


def _with_meta(response: Any) -> tuple[bytes, dict[str, Any]]:
    return bytes(response.bytes()), response.meta


def absolute(addresses: Iterable[str]) -> tuple[str, ...]:
    """Resolve relative folders, so that addresses are valid in processes with another working directory."""
    return tuple(address if is_remote(address) else str(Store(address).folder) for address in addresses)
