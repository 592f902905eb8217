"""Reads the text files that people bring: class lists, prompts, image lists, splits, jobs.

Every such file goes through `read_text`, so that a byte order mark, UTF-16 from Windows, carriage returns or a binary
file mean the same everywhere.
"""

import codecs
import os
import re
from pathlib import Path

from factory.errors import UserError

MAX_TEXT_BYTES = 64 * 2**20
"""Larger files are refused before they are read: a million prompts are about this size."""

_MARKS = (
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def read_text(path: str | Path, what: str) -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 with its byte order mark, lines ending in a line feed.

    `what` names the file's kind in errors, as in "class file". UserError for what is missing, no plain file, larger
    than MAX_TEXT_BYTES, or no text.
    """
    data = read_bytes(path, what, MAX_TEXT_BYTES)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"the {what} {path} cannot be read ({error}); save it as UTF-8 text, as every editor can."
        ) from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    strange = _CONTROL.search(text)
    if strange is not None:
        line = text[: strange.start()].count("\n") + 1
        raise UserError(
            f"the {what} {path} cannot be read: line {line} holds the control character U+{ord(strange[0]):04X}; "
            f"save it as UTF-8 text, as every editor can."
        )
    return text


def read_lines(path: str | Path, what: str) -> list[tuple[int, str]]:
    """(line number from 1, line without blanks at its ends) of each line that is not blank; see `read_text`."""
    rows = enumerate(read_text(path, what).split("\n"), 1)
    # U+FEFF inside a file is a byte order mark left over from joining files: it is invisible and in no name.
    stripped = ((number, line.replace("\ufeff", "").strip()) for number, line in rows)
    return [(number, line) for number, line in stripped if line]


def read_bytes(path: str | Path, what: str, most: int) -> bytes:
    """The bytes of a plain file. UserError where there is none, or where it is larger than `most` bytes."""
    place = Path(path)
    try:
        if not place.is_file():
            told = "it is no file" if place.exists() else "there is no such file"
            raise UserError(f"the {what} {path} cannot be read: {told}; give the path of an existing file.")
        with place.open("rb") as stream:
            # Python sets aside as many bytes as are asked for, so a limit of gigabytes is not asked for.
            data = stream.read(min(os.fstat(stream.fileno()).st_size, most) + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the {what} {path} cannot be read ({error}); give the path of a readable file.") from error
    if len(data) > most:
        raise UserError(
            f"the {what} {path} has more than {most:,} bytes, the most that is read; split it, or give another file."
        )
    return data
