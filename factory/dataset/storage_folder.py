"""Writes in a folder that must not collide. Buckets decide such writes themselves; a folder needs links or a lock."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factory.files.lock import locked

LOCK = ".lock"
"""The lock file of a folder; that of a file system without locks has the same name with a suffix."""
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP)
_LINK_REFUSED = re.compile(rf"\(os error (?:{'|'.join(map(str, _NO_LINKS))})\)")
"""Errors of file systems without hard links. If the cause is another fault, the fallback raises it again."""


class FolderWrites:
    """Creates files in a folder unless they exist, and locks it for replacements."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._has_links = True

    def create(self, client: Any, name: str, data: bytes) -> bool:
        """Create a file; if it exists, returns False or raises AlreadyExistsError.

        The client creates files atomically by a hard link. On file systems without links, the lock file is used.
        """
        if self._has_links:
            try:
                client.put(name, data, mode="create", use_multipart=False)
                return True
            except Exception as error:
                if not _LINK_REFUSED.search(str(error)):
                    raise
                self._has_links = False
        with self.locked():
            if (self._folder / name).exists():
                return False
            client.put(name, data, mode="overwrite", use_multipart=False)
            return True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock file of the folder, which is created if it does not exist or was deleted."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with locked(self._folder / LOCK):
            yield
