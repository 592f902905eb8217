"""Robust folder listings: unreadable directories, non-UTF-8 file names, symlink loops and `lost+found`."""

import os
from collections.abc import Iterator
from pathlib import Path

LOST_AND_FOUND = "lost+found"
"""A directory that file systems create at the root of a volume; never part of the data."""


def walk_files(folder: Path, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (name relative to `folder`, status) of each file below `folder/prefix`, following links as the store does.

    Invalid UTF-8 bytes in a name are replaced, so that it can be printed and compared with dataset names. `lost+found`
    in the folder itself is skipped. Raises OSError for any other unreadable directory.
    """
    seen: set[tuple[int, int]] = set()
    for directory, subdirectories, names in os.walk(folder / prefix, onerror=_raise, followlinks=True):
        status = os.stat(directory)
        if (status.st_dev, status.st_ino) in seen:  # a link to a directory already visited, such as a parent
            subdirectories.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if Path(directory) == folder and LOST_AND_FOUND in subdirectories:
            subdirectories.remove(LOST_AND_FOUND)
        for name in names:
            path = os.path.join(directory, name)
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue  # deleted meanwhile, or a dangling link
            yield os.fsencode(os.path.relpath(path, folder)).decode(errors="replace"), status


def names_in(folder: Path) -> list[str]:
    """The sorted, printable names in a folder without `lost+found`; empty if the folder does not exist."""
    if not folder.is_dir():
        return []
    names = (os.fsencode(path.name).decode(errors="replace") for path in folder.iterdir())
    return sorted(name for name in names if name != LOST_AND_FOUND)


def _raise(error: OSError) -> None:
    raise error
