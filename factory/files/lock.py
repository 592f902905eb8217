"""A lock between processes on one folder, also on file systems that have none of their own."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
_ABANDONED = 30.0


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Take turns on `path`, which is made. OSError where neither kind of lock can be had.

    `flock` where the file system has it: it ends with its process. Elsewhere (Lustre without -o flock, some NFS) a file
    that only one can create; one that is older than half a minute is of a process that was killed, for a turn is short.
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
                yield
                return
    with _created(path.with_name(path.name + ".held")):
        yield


@contextlib.contextmanager
def _created(path: Path) -> Iterator[None]:
    while True:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()
            time.sleep(0.02)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
