"""Local paths: options that accept a file or folder on this machine but no URL."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from factory.errors import UserError

_FILE_SCHEME = re.compile(r"^file:(?://|(?=/))", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def local_path(text: str, what: str) -> Path:
    """Parse a local path, which may be a file: URL or begin with `~` (no shell expands paths in jobs and programs).

    Raises UserError for other URLs, which `Path` would turn into folders such as `s3:`, for an empty text, which it
    would take for the current folder, and as `in_home`. `what` names the option in the message.
    """
    if not text.strip():
        raise UserError(f"{what} is empty; give a path (. for the current folder).")
    scheme = _SCHEME.match(text)
    if scheme is None or scheme[1].lower() == "file":
        return in_home(without_file_scheme(text), f"{what}: ")
    raise UserError(
        f"{what} must be a local path, got the URL {text}; give a path on this machine (only datasets can be read from "
        f"and written to URLs)."
    )


def address_text(address: str | os.PathLike[str]) -> str:
    """The address of a dataset that a program passes, as text; UserError if it is not a path or URL, such as None."""
    return path_text(address, "the address of a dataset must be a path or a URL")


def path_text(path: str | os.PathLike[str], rule: str) -> str:
    """A path that a program passes, as text; UserError, whose message starts with `rule`, if it is of another type."""
    if isinstance(path, str):
        return path
    if isinstance(path, os.PathLike) and isinstance(text := os.fspath(path), str):
        return text
    raise UserError(f"{rule}, got {path!r:.80}; give a string or a pathlib.Path.")


def without_file_scheme(text: str) -> str:
    """The path of a file: URL, as in file:///data, file:/data or file://data; any other text unchanged.

    `Path.as_uri` and file managers write %20 for a space, and bytes that are not UTF-8 in the same way.
    """
    path = _FILE_SCHEME.sub("", text)
    return text if path == text else unquote(path, errors="surrogateescape")


def check_writable_folder(folder: Path, option: str) -> None:
    """Raise UserError if files cannot be written to a folder, which need not exist yet. Nothing is created.

    For commands that write their results after hours of work.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    problem = None
    if not os.path.exists(existing):
        problem = f"{existing} is a link to {os.readlink(existing)}, which does not exist"
    elif not existing.is_dir():
        problem = f"{existing} is not a folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        problem = f"{existing} is not writable"
    if problem is not None:
        raise UserError(f"{option} {folder} cannot be written: {problem}; give another path.")


IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""The formats of the images that commands draw, by suffix."""


def check_image_file(path: Path, option: str) -> None:
    """Raise UserError if an image cannot be written to a file, which need not exist yet. Nothing is created."""
    if path.suffix.lower() not in IMAGE_FORMATS:
        raise UserError(f"{option} must end in {', '.join(IMAGE_FORMATS)}, got {path}.")
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; give the path of an image file.")
    check_writable_folder(path.parent, f"{option}: the folder")


def expanded(path: str | Path) -> Path:
    """The path with `~` and `~user` expanded. If the home folder is unknown, the path is unchanged, so it is not found.

    `Path.expanduser` raises RuntimeError in this case, also for `~` of a user that a container does not know.
    """
    return Path(os.path.expanduser(path))


def in_home(text: str, what: str = "") -> Path:
    """As `expanded`, for paths that may be created. `what` begins the message.

    Raises UserError if the home folder is unknown, unless the path exists. A command would create a folder named `~` in
    the working directory, where `rm -r ~` means another one.
    """
    path = os.path.expanduser(text)
    if path.startswith("~") and not os.path.lexists(path):
        raise UserError(f"{what}there is no home folder for {text}; give an absolute path.")
    return Path(path)


def split_named_path(text: str) -> tuple[str | None, str]:
    """Split "NAME=PATH" into (NAME, PATH); (None, PATH) without a name. A path or URL may itself contain "="."""
    name, equals, path = text.partition("=")
    if equals and "/" not in name:
        return name.strip(), path
    return None, text
