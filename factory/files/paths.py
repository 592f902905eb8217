"""Folders and files on this machine, where a URL cannot stand for one."""

import re
from pathlib import Path

from factory.errors import UserError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def local_path(named: str, what: str) -> Path:
    """The path of a file or folder on this machine; `file://` may stand before it.

    UserError for a URL, of which a path would make a folder such as `s3:`; `what` is the option that named it.
    """
    scheme = _SCHEME.match(named)
    if scheme is None:
        return Path(named)
    if scheme[1].lower() == "file":
        return Path(named.removeprefix(f"{scheme[1]}://"))
    raise UserError(
        f"{what} is a path on this machine and cannot be the URL {named}; give a local path (only datasets can be "
        f"read from and written to URLs)."
    )


def split_named_path(named: str) -> tuple[str | None, str]:
    """(NAME, PLACE) of "NAME=PLACE"; (None, PLACE) of a place alone, which may be a path or URL with "=" in it."""
    name, equals, place = named.partition("=")
    if equals and "/" not in name:
        return name.strip(), place
    return None, named
