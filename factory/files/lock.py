"""A lock between processes, with a fallback for file systems without `flock`."""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from factory.errors import TransientError

_log = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
_ABANDONED = 30.0


IsHeld = Callable[[], bool]
"""Whether a lock is still held."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[IsHeld]:
    """Hold an exclusive lock on `path`, creating the file if necessary. Raises OSError if no lock is possible.

    Uses `flock` if the file system supports it; the kernel releases it when the process ends. Otherwise (Lustre without
    -o flock, some NFS) it creates a lock file exclusively. The lock is only held briefly, so a lock file older than
    half a minute belongs to a killed process and is removed. A process that was stopped meanwhile must ask whether it
    still has the lock, before it writes.
    """
    try:
        import fcntl
    except ImportError:
        fcntl = None  # type: ignore[assignment]
    with open(path, "a") as stream:
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            else:
                yield lambda: True
                return
    with _lock_file(path.with_name(path.name + ".held")) as is_held:
        yield is_held


@contextlib.contextmanager
def sole_writer(path: Path, folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` while a command writes to `folder`. TransientError if another command has it.

    Without `flock`, a warning is logged and no lock is held: a lock file would outlive a killed process, and its age
    does not show whether a long run is still active.
    """
    with open(path, "a") as stream:
        try:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TransientError(
                f"another command is writing to {folder}; wait until it has finished, or give another folder."
            ) from None
        except (ImportError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            _log.warning("%s is on a file system without locks; write to it with one process at a time.", folder)
        yield


@contextlib.contextmanager
def _lock_file(path: Path) -> Iterator[IsHeld]:
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            break
        except FileExistsError:
            _remove_abandoned(path)
            time.sleep(0.02)
    own = os.fstat(descriptor)

    def is_held() -> bool:
        try:
            return os.path.samestat(own, path.stat())
        except FileNotFoundError:
            return False

    try:
        yield is_held
    finally:
        if is_held():
            path.unlink(missing_ok=True)
        os.close(descriptor)  # until now, no other file can get its number


def _remove_abandoned(path: Path) -> None:
    """Remove the lock file of a killed process, in one process at a time.

    Otherwise, a process that has seen the old file could remove the new file of a faster process.
    """
    removal = path.with_name(path.name + ".removal")
    if not _is_abandoned(path):
        return
    try:
        os.close(os.open(removal, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        if _is_abandoned(removal):
            removal.unlink(missing_ok=True)
        return
    try:
        if _is_abandoned(path):
            path.unlink(missing_ok=True)
    finally:
        removal.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED
    except FileNotFoundError:
        return False
