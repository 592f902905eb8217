"""Image lists of labelled folders: one image per line, in the formats that common tools write."""

from collections.abc import Callable
from pathlib import Path

from factory.errors import UserError
from factory.files.text import read_lines
from factory.labelled.interface import inside

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
"""Suffixes of images and label images, in lower or upper case."""

IMAGES, LABELS = "JPEGImages", "SegmentationClass"


def read_keys(path: Path, root: Path, exists: Callable[[str], bool]) -> list[str]:
    """The keys of an image list: paths in JPEGImages without suffix.

    A line is a key, a file name, a path in the folder, or a pair of paths such as `/JPEGImages/a.jpg
    /SegmentationClass/a.png`. `exists` tells whether a key has an image; it lets keys contain spaces. UserError names
    the line that has none of these forms or that leads outside the folder.
    """
    return [_key(line, f"line {number} of {path}", root, exists) for number, line in read_lines(path, "image list")]


def _key(line: str, where: str, root: Path, exists: Callable[[str], bool]) -> str:
    key = _key_of_path(line, IMAGES, root)
    if key is not None and exists(key):
        return key
    parts = line.split("\t") if "\t" in line else line.split()
    if len(parts) == 1 and key is not None:
        return key
    if len(parts) == 2:
        key, label = _key_of_path(parts[0], IMAGES, root), _key_of_path(parts[1], LABELS, root)
        if key is not None and _is_file(parts[1]) and label == key:
            return key
    problem = "contains more than one name" if len(parts) > 1 else "does not name an image of the folder"
    raise UserError(
        f"{where}, {line[:100]!r}, {problem}; a line must name one image of {root / IMAGES}, or the image's path and "
        f"the path of its label image of the same name in {LABELS}."
    )


def _key_of_path(text: str, folder: str, root: Path) -> str | None:
    """The key of a name or path; None if it leads outside `folder`."""
    path = inside(root, text.strip())
    if path is None:
        return None
    if path.parts[0] == folder and len(path.parts) > 1:
        path = path.relative_to(folder)
    elif path.parts[0] in (IMAGES, LABELS) or text.startswith("/"):
        return None
    return str(path.with_suffix("")) if _is_file(path.name) else str(path)


def _is_file(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)
