"""Image lists of labelled folders: one image per line, in the forms that tools write."""

from collections.abc import Callable
from pathlib import Path

from factory.errors import UserError
from factory.files.text import read_lines
from factory.labelled.interface import inside

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
"""Of images and of label pictures; in any case."""

IMAGES, LABELS = "JPEGImages", "SegmentationClass"


def read_keys(path: Path, root: Path, exists: Callable[[str], bool]) -> list[str]:
    """The keys of an image list: names in JPEGImages without their suffix.

    A line is a key, a file name, or a path or a pair of paths in the folder, as `/JPEGImages/a.jpg
    /SegmentationClass/a.png`. `exists` says whether a key has an image, so that a key may hold blanks. UserError names
    the line that is none of these, or leads out of the folder.
    """
    return [_key(line, f"line {number} of {path}", root, exists) for number, line in read_lines(path, "image list")]


def _key(line: str, where: str, root: Path, exists: Callable[[str], bool]) -> str:
    whole = _named(line, IMAGES, root)
    if whole is not None and exists(whole):
        return whole
    parts = line.split("\t") if "\t" in line else line.split()
    if len(parts) == 1 and whole is not None:
        return whole
    if len(parts) == 2:
        key, label = _named(parts[0], IMAGES, root), _named(parts[1], LABELS, root)
        if key is not None and _is_file(parts[1]) and label == key:
            return key
    told = "holds more than one name" if len(parts) > 1 else "names no image of the folder"
    raise UserError(
        f"{where}, {line[:100]!r}, {told}; a line is one image of {root / IMAGES}, or its path and that of its label "
        f"picture in {LABELS}, of the same name."
    )


def _named(text: str, folder: str, root: Path) -> str | None:
    """The key that a name or a path stands for; None where it leads out of its folder."""
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
