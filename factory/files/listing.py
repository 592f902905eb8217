"""Robust folder listings: unreadable directories, non-UTF-8 file names, symlink loops and `lost+found`."""

import os
from collections.abc import Iterator
from pathlib import Path

LOST_AND_FOUND = "lost+found"
"""A directory that file systems create at the root of a volume; never part of the data."""


def walk_files(folder: Path, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (name relative to `folder`, status) of each file below `folder/prefix`, following links as the store does.

    A link to a directory above itself is skipped. Invalid UTF-8 bytes in a name are replaced, so that it can be printed
    and compared with dataset names. `lost+found` in the folder itself is skipped. Raises OSError for any other
    unreadable directory.
    """
    for path in _files_below(folder / prefix, frozenset(), folder / LOST_AND_FOUND):
        try:
            status = os.stat(path)
        except FileNotFoundError:
            continue  # deleted meanwhile, or a dangling link
        yield os.fsencode(os.path.relpath(path, folder)).decode(errors="replace"), status


def _files_below(directory: Path, above: frozenset[tuple[int, int]], skipped: Path) -> Iterator[str]:
    """All files below `directory`; `above` identifies the directories on the path to it."""
    try:
        status = os.stat(directory)
        with os.scandir(directory) as entries:
            found = list(entries)
    except FileNotFoundError:  # deleted meanwhile
        return
    if (status.st_dev, status.st_ino) in above:
        return
    above |= {(status.st_dev, status.st_ino)}
    for entry in found:
        if not entry.is_dir():
            yield entry.path
        elif Path(entry.path) != skipped:
            yield from _files_below(Path(entry.path), above, skipped)


def names_in(folder: Path) -> list[str]:
    """The sorted, printable names in a folder without `lost+found`; empty if the folder does not exist."""
    if not folder.is_dir():
        return []
    names = (os.fsencode(path.name).decode(errors="replace") for path in folder.iterdir())
    return sorted(name for name in names if name != LOST_AND_FOUND)
