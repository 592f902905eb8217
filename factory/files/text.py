"""Read text files from users: class lists, prompts, image lists, splits and jobs.

All of them are read with `read_text`, so that byte order marks, UTF-16, carriage returns and binary files are handled
alike.
"""

import codecs
import os
import re
from pathlib import Path

from factory.errors import UserError

MAX_TEXT_BYTES = 64 * 2**20
"""Larger files are rejected before they are read; a million prompts take about this much."""

_CHUNK = 2**20
_BYTE_ORDER_MARKS = (
    # UTF-32 first: its little-endian mark starts with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def read_text(path: str | Path, what: str) -> str:
    """Read a text file: UTF-8, or UTF-16 or UTF-32 with a byte order mark; line ends become line feeds.

    `what` names the kind of file in messages, for example "class file". Raises UserError if the file is missing, not a
    regular file, larger than MAX_TEXT_BYTES, or not text.
    """
    data = read_bytes(path, what, MAX_TEXT_BYTES)
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"the {what} {path} cannot be read ({error}); save it as UTF-8 text.") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    control = _CONTROL.search(text)
    if control is not None:
        line = text[: control.start()].count("\n") + 1
        raise UserError(
            f"the {what} {path} cannot be read: line {line} contains the control character "
            f"U+{ord(control[0]):04X}; save it as UTF-8 text."
        )
    return text


def read_lines(path: str | Path, what: str) -> list[tuple[int, str]]:
    """(line number from 1, stripped line) of each non-blank line; see `read_text`."""
    lines = enumerate(read_text(path, what).split("\n"), 1)
    # U+FEFF inside a file is a byte order mark left over from concatenating files: invisible and never part of a name.
    stripped = ((number, line.replace("\ufeff", "").strip()) for number, line in lines)
    return [(number, line) for number, line in stripped if line]


def read_bytes(path: str | Path, what: str, max_bytes: int) -> bytes:
    """Read a regular file; raises UserError if it is missing or larger than `max_bytes`."""
    file = Path(path)
    try:
        if not file.is_file():
            problem = "it is not a regular file" if file.exists() else "it does not exist"
            raise UserError(f"the {what} {path} cannot be read: {problem}; give the path of an existing file.")
        with file.open("rb") as stream:
            # Python allocates as many bytes as are requested, so a limit of gigabytes must not be requested.
            data = stream.read(min(os.fstat(stream.fileno()).st_size, max_bytes) + 1)
            # Some file systems report a size of 0 for files that they generate.
            while len(data) <= max_bytes and (more := stream.read(_CHUNK)):
                data += more
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the {what} {path} cannot be read ({error}); give the path of a readable file.") from error
    if len(data) > max_bytes:
        raise UserError(
            f"the {what} {path} has more than the limit of {max_bytes:,} bytes; split it or give another file."
        )
    return data
