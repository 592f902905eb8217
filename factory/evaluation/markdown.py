"""Result tables in Markdown files: the output of a command between two markers."""

import math
import re
from pathlib import Path

from factory.errors import UserError
from factory.files.atomic import write_atomically
from factory.files.paths import check_writable_folder


def check_page(page: Path) -> None:
    """Raise UserError if `write_table` cannot write to a file; called before the measurements."""
    check_writable_folder(page.parent, "--table: the folder")
    if page.exists() and not page.is_file():
        raise UserError(f"--table {page} is a folder; give the path of a Markdown file, which need not exist.")
    try:
        if page.exists():
            page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--table {page} is not a readable text file in UTF-8 ({error}); give another file.") from error


def cell(text: str) -> str:
    """A name as a cell of a table."""
    return text.replace("|", "\\|")


def percent(share: float) -> str:
    """A share as a cell of a table, in percent; empty for NaN."""
    return "" if math.isnan(share) else f"{100 * share:.1f}"


def write_table(page: Path, text: str, name: str) -> None:
    """Put `text` between the first two `<!-- name -->` markers of a Markdown file, with which a single one is replaced.

    Without markers, they are appended with the text.
    """
    marker = f"<!-- {name} -->"
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    marked = f"{marker}\n{text}{marker}"
    page.parent.mkdir(parents=True, exist_ok=True)
    markers = re.compile(f"{re.escape(marker)}(.*?{re.escape(marker)})?", re.DOTALL)
    replaced, count = markers.subn(lambda _: marked, old, count=1)
    gap = "\n" if old else ""
    write_atomically(page, replaced if count else f"{old}{gap}{marked}\n")
