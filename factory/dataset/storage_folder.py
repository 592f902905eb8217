"""Safe writes in a folder: files must not collide or be lost, for which a folder requires links, a lock and fsync."""

import contextlib
import errno
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factory.files.atomic import synchronise
from factory.files.lock import locked

LOCK = ".lock"
"""The lock file of a folder; that of a file system without locks has the same name with a suffix."""
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP)
_LINK_REFUSED = re.compile(rf"\(os error (?:{'|'.join(map(str, _NO_LINKS))})\)")
"""Errors of file systems without hard links. If there is another cause, the fallback raises it again."""


class FolderWrites:
    """Creates files in a folder unless they exist, locks it for replacements, and synchronises it with the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._has_links = True
        self._synchronised = set[Path]()

    def create(self, client: Any, name: str, data: bytes) -> bool:
        """Create a file, or return False if it exists. In both cases, it then survives a power failure."""
        created = self._create(client, name, data)
        try:
            self.synchronise(name)
        except OSError:
            if created:  # the disk may contain an incomplete file
                (self._folder / name).unlink(missing_ok=True)
            raise
        return created

    def _create(self, client: Any, name: str, data: bytes) -> bool:
        """The client creates files atomically by a hard link. On file systems without links, the lock file is used."""
        from obstore.exceptions import AlreadyExistsError

        if self._has_links:
            try:
                client.put(name, data, mode="create", use_multipart=False)
                return True
            except AlreadyExistsError:
                return False
            except Exception as error:
                if not _LINK_REFUSED.search(str(error)):
                    raise
                self._has_links = False
        return self._create_renamed(self._folder / name, data)

    def _create_renamed(self, path: Path, data: bytes) -> bool:
        """Only the rename is locked: other workers and the heartbeat of the lease need not wait for a large shard."""
        partial = path.with_name(f"{path.name}#{secrets.randbelow(10**12)}")  # ignored by listings, like the client's
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(data)
            with self.locked():
                created = not path.exists()
                if created:
                    partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return created

    def synchronise(self, name: str) -> None:
        """Write a file and the entries of its folders to the disk, which the client leaves to the operating system.

        A power failure could otherwise keep a receipt and lose the shard that was written before it.
        """
        path = self._folder / name
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            synchronise(path)
        for folder in path.parents:
            with contextlib.suppress(OSError):  # some file systems do not support it, or the folder is not readable
                synchronise(folder)
            if folder == self._folder.parent or path.parent in self._synchronised:
                break  # the folders above contain no new entry
        self._synchronised.add(path.parent)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock file of the folder, which is created if it does not exist or was deleted."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with locked(self._folder / LOCK):
            yield
