"""Result tables in Markdown files: a command's output between two markers."""

import re
from pathlib import Path

from factory.files.atomic import write_atomically


def write_table(page: Path, text: str, name: str) -> None:
    """Put `text` between the two `<!-- name -->` markers of a Markdown file, or append both if it has none."""
    marker = f"<!-- {name} -->"
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    marked = f"{marker}\n{text}{marker}"
    page.parent.mkdir(parents=True, exist_ok=True)
    replaced, count = re.subn(f"{marker}.*{marker}", lambda _: marked, old, flags=re.DOTALL)
    gap = "\n" if old else ""
    write_atomically(page, replaced if count else f"{old}{gap}{marked}\n")
