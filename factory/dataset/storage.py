"""Where a dataset lives: a folder or a bucket behind a few verbs. A write is there whole or not at all."""

import contextlib
import errno
import hashlib
import itertools
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

from factory.config.sections import StoreRecipe
from factory.dataset.storage_access import Access, check_address, find_access
from factory.dataset.storage_retry import Patience, first_line, names_no_bucket
from factory.errors import TransientError, UserError
from factory.files.listing import LOST_AND_FOUND, walk_files
from factory.files.lock import locked

T = TypeVar("T")

REMOTE_SCHEMES = ("s3", "gs", "az", "http", "https")
_READERS, _LISTERS = 128, 16
_LISTS_FROM_A_NAME = ("s3", "gs")
"""Others skip what comes before the name only after it was sent."""
_SMALL = 1 << 20
_VARIABLES = {
    "timeout": "FACTORY_STORE_TIMEOUT",
    "slowest": "FACTORY_STORE_SLOWEST",
    "patience": "FACTORY_STORE_PATIENCE",
}
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP)
_LINK_REFUSED = re.compile(rf"\(os error (?:{'|'.join(map(str, _NO_LINKS))})\)")
"""What a file system without hard links says; where it is another fault, writing in turns meets it again."""


class StoreFullError(TransientError):
    """The disk or bucket takes no more; nothing that was committed is lost."""


class ConflictError(Exception):
    """Other bytes are there, though bytes are a function of the recipe: an alarm, never overwritten."""


@dataclass(frozen=True)
class Entry:
    """A name in a listing: its bytes, and a tag that changes when its content does."""

    size: int
    tag: str


class Store:
    """Verbs over names like "train/000000.tar", below one folder or URL.

    A store holds clients with threads of their own: build it in the process that uses it, do not carry it over a fork.
    It pickles as its address, its settings and the access that was found where it was pickled: a worker reaches what
    the driver reaches. Trouble of a bucket that passes is waited for in every verb, `settings.patience` seconds long;
    `StoreUnavailableError` after that.
    """

    def __init__(self, address: str, settings: StoreRecipe | None = None, access: Access | None = None) -> None:
        """`address` is a folder, or a URL such as s3://bucket/prefix. Nothing is touched until the first verb."""
        remote = is_remote(address)
        if remote:
            check_address(address)
        self.address = address
        self.settings = with_environment(settings or StoreRecipe())
        self.folder = None if remote else Path(address.removeprefix("file://")).absolute()
        self._access = access
        self._clients: dict[float | None, Any] = {}
        self._lock = threading.Lock()
        self._without_links = False
        self._patience = Patience(address, self.settings.patience)

    def __reduce__(self) -> tuple[Callable[..., "Store"], tuple[Any, ...]]:
        access = self._find_access() if self.folder is None else None
        return _carried, (self.address, self.settings, access, self._patience.proven)

    def with_patience(self, seconds: float) -> "Store":
        """The same store for what may be dropped: it gives up after so many seconds."""
        brief = Store(self.address, self.settings, self._access)
        brief._clients = self._clients
        brief._patience = Patience(self.address, min(seconds, self.settings.patience), proven=True, quiet=True)
        return brief

    @property
    def trouble(self) -> str | None:
        """A sentence while calls wait for a bucket that does not answer."""
        return self._patience.trouble

    def hide(self, text: str) -> str:
        """The text without the store's credentials."""
        return text if self._access is None else self._access.hide(text)

    def create(self, name: str, data: bytes) -> bool:
        """Write `data` if there is no `name` yet; False where there is one, which stays as it is."""
        from obstore.exceptions import AlreadyExistsError

        def put(client: Any) -> bool:
            if not self._without_links:
                try:
                    client.put(name, data, mode="create", use_multipart=False)
                    return True
                except Exception as error:
                    if self.folder is None or not _LINK_REFUSED.search(str(error)):
                        raise
                    self._without_links = True
            return self._create_in_turn(client, name, data)

        try:
            return self._do(name, put, len(data), writes=True)
        except AlreadyExistsError:
            return False

    def _create_in_turn(self, client: Any, name: str, data: bytes) -> bool:
        """`create` on a file system without hard links, by which the client makes a file whole or not at all."""
        assert self.folder is not None
        with locked(self.folder / ".lock"):
            if (self.folder / name).exists():
                return False
            client.put(name, data, mode="overwrite", use_multipart=False)
            return True

    def create_same(self, name: str, data: bytes) -> None:
        """Write `data`, or find the same bytes already there; `ConflictError` where there are others."""
        while not self.create(name, data):
            found = self.get(name)
            if found is None:
                continue  # deleted between the two, or a service that answers "conflict" to two writers at once
            there, mine = hashlib.sha256(found).hexdigest(), hashlib.sha256(data).hexdigest()
            if there == mine:
                return
            raise ConflictError(
                f"{self.address}/{name} exists with sha256 {there[:12]}, but this worker made {mine[:12]} from the "
                f"same plan; the machines or library versions differ. Check with `factory verify`."
            )

    def compare_and_swap(self, name: str, data: bytes, seen: bytes | None) -> bool:
        """Replace the content `seen` (None: no such name) by `data`; False where somebody else was faster.

        A write whose answer was lost is found again by its content.
        """
        if self.folder is not None:
            return self._swap_file(name, data, seen)
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        if seen is None:
            return self.create(name, data) or self.get(name) == data
        try:
            there = self._do(name, lambda client: _with_meta(client.get(name)))
            if there[0] != seen:
                return there[0] == data
            # Google compares the version, S3 the tag.
            mode = {key: there[1][key] for key in ("e_tag", "version") if there[1].get(key) is not None}
            self._do(
                name, lambda client: client.put(name, data, mode=mode, use_multipart=False), len(data), writes=True
            )
        except FileNotFoundError:
            return False
        except (AlreadyExistsError, PreconditionError):
            return self.get(name) == data
        return True

    def put(self, name: str, data: bytes) -> None:
        """Write `data` over whatever is there: for what is only a copy or news, such as progress. The last one wins."""
        # One request: the client would else send more than 5 MB in parts, each with a time-out of its own.
        self._do(
            name, lambda client: client.put(name, data, mode="overwrite", use_multipart=False), len(data), writes=True
        )

    def get(self, name: str) -> bytes | None:
        """The content, or None where there is no such name; reading makes no folder."""
        found = self.get_tagged(name)
        return None if found is None else found[0]

    def get_tagged(self, name: str) -> tuple[bytes, str] | None:
        """The content with the tag that a listing shows for it; None where there is no such name."""
        if self.folder is not None and not self.folder.is_dir():
            return None
        try:
            data, meta = self._do(name, lambda client: _with_meta(client.get(name)), reads=True)
        except FileNotFoundError:
            return None
        return data, _tag(meta)

    def get_many(self, names: Iterable[str]) -> Iterator[tuple[str, tuple[bytes, str] | None]]:
        """(name, content and tag, or None) of each, in order; many are read at once, few are held in memory."""
        readers = ThreadPoolExecutor(_READERS, thread_name_prefix="readers")
        ahead = deque[tuple[str, Future[tuple[bytes, str] | None]]]()
        try:
            for name in names:
                ahead.append((name, readers.submit(self.get_tagged, name)))
                if len(ahead) == 8 * _READERS:  # the rest goes on while a slow answer is waited for
                    first, answer = ahead.popleft()
                    yield first, answer.result()
            for first, answer in ahead:
                yield first, answer.result()
        finally:
            readers.shutdown(cancel_futures=True)

    def list(self, prefix: str) -> dict[str, int]:
        """Every name in the folder `prefix` ("" for all) with its size in bytes; half-written files are not there."""
        return {name: entry.size for name, entry in self.entries(prefix).items()}

    def entries(self, prefix: str, most: int | None = None, bounds: Sequence[str] = ()) -> dict[str, Entry]:
        """As `list`, with tags; `most` ends it early. A listing that is cut continues after the last name that came.

        `bounds` are names in order, between which a bucket's listing is read in parts at once: a page holds only 1,000.
        """
        if self.folder is not None and not (self.folder / prefix).is_dir():
            return {}
        if urlparse(self.address).scheme not in _LISTS_FROM_A_NAME:
            bounds = ()
        with ThreadPoolExecutor(_LISTERS, thread_name_prefix="listers") as listers:
            parts = listers.map(lambda part: self._part(prefix, most, *part), pairwise([None, *bounds, None]))
            rows = {name: entry for part in parts for name, entry in part.items()}
        return {name: rows[name] for name in sorted(rows) if not re.search(r"#\d+$", name)}

    def _part(self, prefix: str, most: int | None, first: str | None, end: str | None) -> dict[str, Entry]:
        """The entries behind the name `first` and before the name `end`."""
        rows: dict[str, Entry] = {}

        def read(client: Any) -> None:
            # Only buckets promise an order to go on from.
            after = max(rows, default=first) if self.folder is None else None
            for chunk in client.list(prefix or None, offset=after, chunk_size=1000):
                rows.update((row["path"], Entry(row["size"], _tag(row))) for row in chunk if not self._not_ours(row))
                if (most is not None and len(rows) >= most) or (end is not None and max(rows, default="") >= end):
                    break

        def read_folder(client: Any) -> None:
            try:
                read(client)
            except (GenericError, InvalidPathError, PermissionDeniedError):  # the client reads all of it or nothing
                rows.clear()
                rows.update(self._walked(client, prefix, most))

        from obstore.exceptions import GenericError, InvalidPathError, PermissionDeniedError

        self._do(prefix, read if self.folder is None else read_folder)
        return rows if end is None else {name: entry for name, entry in rows.items() if name < end}

    def _not_ours(self, row: Any) -> bool:
        return self.folder is not None and str(row["path"]).startswith(f"{LOST_AND_FOUND}/")

    def _walked(self, client: Any, prefix: str, most: int | None) -> Iterator[tuple[str, Entry]]:
        """`entries` of a folder that the client cannot list; tags are the client's where it can open the file."""
        from obstore.exceptions import BaseError

        assert self.folder is not None
        for name, status in itertools.islice(walk_files(self.folder, prefix), most):
            try:
                tag = _tag(client.head(name))
            except (BaseError, OSError, ValueError):
                tag = f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"
            yield name, Entry(status.st_size, tag)

    def delete(self, name: str) -> None:
        """Remove `name`; it need not exist."""
        if self.folder is not None and not self.folder.is_dir():
            return
        with contextlib.suppress(FileNotFoundError):
            self._do(name, lambda client: client.delete(name))

    def _do(self, name: str, action: Callable[[Any], T], size: int = 0, writes: bool = False, reads: bool = False) -> T:
        """Run an action on the right client, wait for trouble that passes, and turn the rest into a sentence.

        What is read has no known size, so those requests end where nothing arrives any more; all others after a time
        that their size allows.
        """
        timeout = None if reads else self._timeout(size)
        with self._sentences(name, writes):
            return self._patience.persist(lambda: action(self._connect(timeout)), self.hide)

    def _timeout(self, size: int) -> float:
        """By powers of two of the size, so that a few clients, each with connections of its own, serve for all."""
        rounded = 1 << (size - 1).bit_length() if size > _SMALL else 0
        return self.settings.timeout + rounded / self.settings.slowest

    def _find_access(self) -> Access:
        with self._lock:
            if self._access is None:
                self._access = find_access(self.address, self.settings)
            return self._access

    def _connect(self, timeout: float | None) -> Any:
        if self.folder is not None:
            timeout = None
        client = self._clients.get(timeout)
        if client is None:
            from obstore.store import LocalStore

            if self.folder is not None:
                client = LocalStore(self.folder, mkdir=True)
            else:
                client = self._find_access().build(self.address, timeout)
            self._clients[timeout] = client
        return client

    def _swap_file(self, name: str, data: bytes, seen: bytes | None) -> bool:
        """The local store has no conditional replace: take turns under a lock beside the folder's content."""
        assert self.folder is not None
        with self._sentences(name, writes=True):
            self._connect(None)
            with locked(self.folder / ".lock"):
                if self.get(name) != seen:
                    return False
                self._connect(None).put(name, data)
                return True

    @contextlib.contextmanager
    def _sentences(self, name: str, writes: bool) -> Iterator[None]:
        """Turn what the storage says into a sentence for the one who chose it."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        where = f"{self.address.rstrip('/')}/{name}"
        try:
            yield
        except (AlreadyExistsError, PreconditionError, UserError):
            raise
        except (BaseError, OSError, ValueError) as error:
            if self.folder is None and (names_no_bucket(error) or (writes and isinstance(error, FileNotFoundError))):
                verb = "write" if writes else "read"
                raise UserError(f"cannot {verb} {where}: there is no such bucket; make it, or give another.") from None
            if isinstance(error, FileNotFoundError):
                raise
            said = self.hide(first_line(error))
            if "os error 28" in said or "os error 122" in said or getattr(error, "errno", 0) in (28, 122):
                raise StoreFullError(
                    f"there is no room left for {where}; everything committed before is kept. "
                    f"Make room and run the same command again: it resumes."
                ) from None
            told = f"cannot use {where}: {said}. Give a folder or bucket that can be read and written."
            # A bucket's error carries headers and URLs: its own text stays out of tracebacks.
            raise UserError(told) from (error if self.folder is not None else None)


def _carried(address: str, settings: StoreRecipe, access: Access | None, proven: bool) -> Store:
    store = Store(address, settings, access)
    store._patience.proven = proven
    return store


def _with_meta(answer: Any) -> tuple[bytes, dict[str, Any]]:
    return bytes(answer.bytes()), answer.meta


def _tag(meta: Any) -> str:
    # Some services quote tags in one answer and not in the other.
    return str(meta.get("e_tag") or "").strip('"') or f"{meta['last_modified'].timestamp()}-{meta['size']}"


def with_environment(settings: StoreRecipe) -> StoreRecipe:
    """Settings with FACTORY_STORE_... for what they leave at its default; UserError for what is no number."""
    given = {}
    for name, variable in _VARIABLES.items():
        if name not in settings.model_fields_set and (text := os.environ.get(variable)):
            try:
                given[name] = float(text)
            except ValueError:
                raise UserError(f"{variable} is a number, got {text!r}.") from None
    if not given:
        return settings
    try:
        return StoreRecipe.model_validate(settings.model_dump(exclude_unset=True) | given)
    except ValueError:
        names = ", ".join(f"{_VARIABLES[name]}={value:g}" for name, value in given.items())
        raise UserError(f"{names} is out of bounds: a time-out is over 0 and up to 3600 s, a speed over 0.") from None


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
