"""Listings of a folder or a bucket: the size of each file, and a tag that changes with its content."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.dataset.ordered_map import ordered_map
from factory.files.listing import LOST_AND_FOUND, walk_files

Run = Callable[[Callable[[Any], None]], None]
"""Calls an action with a client of the store, and again after a temporary failure."""

_LISTERS = 16
_PAGE = 1000
_LISTS_FROM_A_NAME = ("s3", "gs")
"""Services that can start a listing at a given name. Others also send all names before it, which the client skips."""


@dataclass(frozen=True)
class Entry:
    """A file in a listing: its size in bytes, and a tag that changes with its content."""

    size: int
    tag: str


def list_bucket(
    run: Run, scheme: str, prefix: str, limit: int | None = None, bounds: Sequence[str] = (), in_order: bool = True
) -> dict[str, Entry]:
    """Every file below `prefix` of a bucket, or about `limit` of them.

    `bounds` are names in ascending order. The parts between them are read concurrently, because a page holds only
    1,000 names. `in_order` is whether the service lists in the order of names; S3 Express does not.
    """
    if scheme not in _LISTS_FROM_A_NAME or not in_order:
        bounds = ()
    edges = itertools.pairwise([None, *bounds, None])

    def read(part: tuple[str | None, str | None]) -> dict[str, Entry]:
        return _list_part(run, prefix, limit, in_order, *part)

    parts = ordered_map(read, edges, _LISTERS, ahead=len(bounds) + 1, name="listers")
    return {name: entry for _, part in parts for name, entry in part.items()}


def _list_part(
    run: Run, prefix: str, limit: int | None, in_order: bool, first: str | None, end: str | None
) -> dict[str, Entry]:
    """The files after the name `first` and before the name `end`."""
    entries: dict[str, Entry] = {}

    def read(client: Any) -> None:
        # After a failure, the listing continues behind the last name, or starts again if it has no order.
        if not in_order:
            entries.clear()
        for chunk in client.list(prefix or None, offset=max(entries, default=first), chunk_size=_PAGE):
            entries.update((meta["path"], entry_of(meta)) for meta in chunk)
            if (limit is not None and len(entries) >= limit) or (end is not None and max(entries, default="") >= end):
                break

    run(read)
    return entries if end is None else {name: entry for name, entry in entries.items() if name < end}


def list_folder(run: Run, folder: Path, prefix: str, limit: int | None) -> dict[str, Entry]:
    """Every file below `folder/prefix`, or about `limit` of them, without `lost+found`."""
    from obstore.exceptions import GenericError, InvalidPathError, PermissionDeniedError

    entries: dict[str, Entry] = {}
    if not (folder / prefix).is_dir():
        return entries

    def read(client: Any) -> None:
        entries.clear()  # unlike a bucket, a folder has no order in which a listing could continue
        try:
            for chunk in client.list(prefix or None, chunk_size=_PAGE):
                entries.update((meta["path"], entry_of(meta)) for meta in chunk if not _is_lost_and_found(meta))
                if limit is not None and len(entries) >= limit:
                    break
        except (GenericError, InvalidPathError, PermissionDeniedError):  # the client lists everything or nothing
            entries.clear()
            for name, status in itertools.islice(walk_files(folder, prefix), limit):
                entries[name] = Entry(status.st_size, _tag_of_file(client, name, status))

    run(read)
    return entries


def entry_of(meta: Any) -> Entry:
    """The entry of a file's metadata, as the client returns it."""
    return Entry(meta["size"], tag_of(meta))


def tag_of(meta: Any) -> str:
    """A text that changes with the content of a file."""
    # Some services quote tags in some responses only.
    return str(meta.get("e_tag") or "").strip('"') or f"{meta['last_modified'].timestamp()}-{meta['size']}"


def _is_lost_and_found(meta: Any) -> bool:
    return str(meta["path"]).startswith(f"{LOST_AND_FOUND}/")


def _tag_of_file(client: Any, name: str, status: Any) -> str:
    """The tag of the client if it can open the file, so that all listings have the same tag."""
    from obstore.exceptions import BaseError

    try:
        return tag_of(client.head(name))
    except (BaseError, OSError, ValueError):
        return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"
