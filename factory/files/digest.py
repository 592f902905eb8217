"""Digests that identify the content of files and folders, such as those of a model."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from factory.files.listing import files_below


def folder_digest(folder: Path) -> str:
    """40 hex digits over the names and contents of a folder's files, except hidden ones."""
    return digest_of(files_in(folder), folder)


def file_digest(file: Path) -> str:
    """40 hex digits over the name and content of a file."""
    return digest_of([file], file.parent)


def digest_of(files: Iterable[Path], folder: Path) -> str:
    """40 hex digits over the contents of files and their names relative to `folder`, in the given order."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()} {sha256(path)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:40]


def files_in(folder: Path) -> Iterator[Path]:
    """The files in a folder and its subfolders in alphabetical order, except hidden ones.

    Links to folders are followed, as the libraries that load a model do: its weights are often links into a cache.
    """
    for path in sorted(map(Path, files_below(folder))):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hex digits. Raises OSError if it cannot be read."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
