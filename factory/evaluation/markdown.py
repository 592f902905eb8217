"""Measured tables in pages: what a command printed, put between two marks."""

import re
from pathlib import Path


def write_table(page: Path, text: str, name: str) -> None:
    """Put `text` between the page's two `<!-- name -->` marks; behind the page's text where it has none."""
    mark = f"<!-- {name} -->"
    written = page.read_text(encoding="utf-8") if page.exists() else ""
    marked = f"{mark}\n{text}{mark}"
    page.parent.mkdir(parents=True, exist_ok=True)
    replaced, count = re.subn(f"{mark}.*{mark}", lambda _: marked, written, flags=re.DOTALL)
    gap = "\n" if written else ""
    page.write_text(replaced if count else f"{written}{gap}{marked}\n", encoding="utf-8")
