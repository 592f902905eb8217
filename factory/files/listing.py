"""Robust folder listings: unreadable directories, non-UTF-8 file names, symlink loops and `lost+found`."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

LOST_AND_FOUND = "lost+found"
"""A directory that file systems create at the root of a volume; never part of the data."""


def walk_files(folder: Path, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (name relative to `folder`, status) of each file below `folder/prefix`, following links as the store does.

    Invalid UTF-8 bytes in a name are replaced, so that it can be printed and compared with dataset names. See
    `files_below`.
    """
    for path in files_below(folder, prefix):
        try:
            status = os.stat(path)
        except FileNotFoundError:
            continue  # deleted meanwhile, or a dangling link
        yield os.fsencode(os.path.relpath(path, folder)).decode(errors="replace"), status


def files_below(folder: Path, prefix: str = "") -> Iterator[str]:
    """Yield the path of each file below `folder/prefix`, following links, in the order of the file system.

    A link to itself or to a directory above it is skipped, and so is `lost+found` in the folder itself. Raises OSError
    for any other unreadable directory.
    """
    return _files_below(folder / prefix, frozenset(), folder / LOST_AND_FOUND)


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
        try:
            is_directory = entry.is_dir()
        except OSError as error:
            if error.errno == errno.ELOOP:
                continue
            raise
        if not is_directory:
            yield entry.path
        elif Path(entry.path) != skipped:
            yield from _files_below(Path(entry.path), above, skipped)


def names_in(folder: Path) -> list[str]:
    """The sorted, printable names in a folder without `lost+found`; empty if the folder does not exist."""
    if not folder.is_dir():
        return []
    names = (os.fsencode(path.name).decode(errors="replace") for path in folder.iterdir())
    return sorted(name for name in names if name != LOST_AND_FOUND)
