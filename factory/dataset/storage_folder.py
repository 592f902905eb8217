"""Safe writes in a folder: files must not collide or be lost, for which a folder requires links, a lock and fsync."""

import contextlib
import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from factory.files.atomic import synchronise
from factory.files.lock import IsHeld, locked

LOCK = ".lock"
"""The lock file of a folder; that of a file system without locks has the same name with a suffix."""
TEMPORARY = re.compile(r"#\d+$")
"""The end of the names of temporary files, of this module and of the client. Listings omit them."""
_OWN = re.compile(r"\.(?:tar|parquet|json|yaml|md|log)#\d+$")
"""The same of the files that a dataset has."""
_ABANDONED = 600.0
"""Seconds without a change after which a temporary file belongs to a killed process."""
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems without hard links. If there is another cause, the fallback raises it again."""


class FolderWrites:
    """Creates files in a folder unless they exist, replaces files, and locks the folder for replacements.

    A file gets its name when it is complete and on the disk. Otherwise a power failure could leave an empty file, since
    file systems may write names before contents.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._has_links = True
        self._synchronised = set[Path]()

    def create(self, name: str, data: bytes) -> bool:
        """Create a file, or return False if it exists. In both cases, it then survives a power failure."""
        path, created = self._folder / name, False
        if not os.path.lexists(path):
            with _partial(path, data) as partial:
                created = self._publish(partial, path)
        if not created:
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                synchronise(path)
        self._synchronise_folders(path)
        return created

    def replace(self, name: str, data: bytes, durable: bool, is_held: IsHeld) -> bool:
        """Write a file in the place of an existing one, or return False if the caller has lost the lock meanwhile.

        See `Store.compare_and_swap` for `durable`.
        """
        path = self._folder / name
        with _partial(path, data, durable) as partial:
            if not is_held():
                return False
            partial.replace(path)
        if durable:
            self._synchronise_folders(path)
        return True

    def _publish(self, partial: Path, path: Path) -> bool:
        """Give a file its final name unless it exists: by a hard link or, without links, by a rename under the lock.

        Only the rename is locked: other workers and the heartbeat of the lease need not wait for a large shard.
        """
        if self._has_links:
            try:
                os.link(partial, path)
                return True
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._has_links = False
        with self.locked() as is_held:
            if os.path.lexists(path) or not is_held():
                return False
            partial.replace(path)
            return True

    def _synchronise_folders(self, path: Path) -> None:
        """Write the entries of a file's folders to the disk.

        A power failure could otherwise keep a receipt and lose the shard that was written before it.
        """
        for folder in path.parents:
            with contextlib.suppress(OSError):  # some file systems do not support it, or the folder is not readable
                synchronise(folder)
            if folder == self._folder.parent or path.parent in self._synchronised:
                break  # the folders above contain no new entry
        self._synchronised.add(path.parent)

    @contextmanager
    def locked(self) -> Iterator[IsHeld]:
        """Hold the lock file of the folder, which is created if it does not exist or was deleted."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with locked(self._folder / LOCK) as is_held:
            yield is_held


@contextmanager
def _partial(path: Path, data: bytes, durable: bool = True) -> Iterator[Path]:
    """A temporary file with this content beside `path`, which is deleted at the end unless it was renamed."""
    partial = path.with_name(f"{path.name}#{secrets.randbelow(10**12)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.write_bytes(data)
        if durable:
            synchronise(partial)
        yield partial
    finally:
        with contextlib.suppress(OSError):  # of a broken disk; the first error is of more use
            partial.unlink(missing_ok=True)


def delete_abandoned(folder: Path) -> None:
    """Delete the temporary files of killed processes; those of the last minutes may still be written."""
    for directory, _, names in os.walk(folder):
        for name in filter(_OWN.search, names):
            path = Path(directory, name)
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()
