"""Files that are either complete or absent, whatever interrupts the writer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_atomically(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that becomes `path` when the block ends, and is deleted if the block raises.

    The temporary file is in the same folder, since a rename is atomic only within a file system. It is synchronised
    first: some file systems commit a rename before the data, and a power cut would then leave an empty file.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        with open(partial, "rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` to `path`, text in UTF-8; the file keeps its old content if this is interrupted."""
    with replaced_atomically(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
