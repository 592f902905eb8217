"""The files of a folder that holds more than a dataset: directories closed to this user, names that are no text."""

import os
from collections.abc import Iterator
from pathlib import Path

LOST_AND_FOUND = "lost+found"
"""A directory that file systems put at the root of a volume; it belongs to nobody's data."""


def walk_files(folder: Path, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    """(name relative to `folder`, status) of each file below `folder/prefix`, links followed as the store does.

    Bytes of a name that are no UTF-8 are replaced, so that it can be printed and compared with names that a dataset
    has. `lost+found` in the folder itself is passed over; OSError for another directory that cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    for place, inner, names in os.walk(folder / prefix, onerror=_raise, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if Path(place) == folder and LOST_AND_FOUND in inner:
            inner.remove(LOST_AND_FOUND)
        for name in names:
            path = os.path.join(place, name)
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue  # deleted since, or a link to nothing
            yield os.fsencode(os.path.relpath(path, folder)).decode(errors="replace"), status


def names_in(folder: Path) -> list[str]:
    """The sorted names in a folder, none where there is no folder, without a volume's `lost+found`; printable."""
    if not folder.is_dir():
        return []
    names = (os.fsencode(path.name).decode(errors="replace") for path in folder.iterdir())
    return sorted(name for name in names if name != LOST_AND_FOUND)


def _raise(error: OSError) -> None:
    raise error
