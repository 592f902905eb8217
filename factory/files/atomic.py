"""Atomic writes: files are complete or absent after any interruption, and survive a power failure."""

import contextlib
import errno
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from factory.files.threads import Threads

_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems that do not support `fsync`."""
_THREADS = 16


@contextmanager
def replaced_atomically(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that becomes `path` when the block ends, and is deleted if the block raises.

    The temporary file is in the same folder, since a rename is atomic only within a file system. It is synchronised
    first: some file systems commit a rename before the data, so a power failure would leave an empty file.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        synchronise(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` to `path`, text in UTF-8; the file keeps its old content if this is interrupted."""
    with replaced_atomically(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


def make_weights_readable(folder: Path) -> None:
    """Give weight files below a folder the permissions of the folder, which follow the umask.

    safetensors creates files that only their owner can read, so another user or a container with another user could
    not load the model from a shared file system.
    """
    for file in folder.rglob("*.safetensors"):
        with contextlib.suppress(OSError):  # some file systems have no permissions
            file.chmod(folder.stat().st_mode & 0o666)


def synchronise(path: Path) -> None:
    """Write a file or the entries of a folder to the disk, which otherwise happens up to half a minute later."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def synchronise_all(paths: Collection[Path]) -> None:
    """Write files and the entries of their folders to the disk, several at once, which is faster on most file systems.

    Use it for many small files that become valid together through another file, which is written afterwards.
    """
    with Threads(_THREADS) as pool:
        list(pool.map(synchronise, paths))
    for folder in {path.parent for path in paths}:
        with contextlib.suppress(OSError):  # some file systems do not support it, or the folder is not readable
            synchronise(folder)
