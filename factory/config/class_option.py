"""The value of the option `--classes`: a vocabulary, a file of names, or names."""

import csv
import re
from collections.abc import Sequence

from factory.config.class_file import SUFFIXES, name_problem, read_class_file, split_row
from factory.config.vocabulary import Vocabulary, check_name, coco, from_names, voc
from factory.errors import UserError
from factory.files.paths import expanded

_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")
"""Soft hyphens, zero-width spaces and direction marks, which no script requires.

U+200C and U+200D are not among them: they occur inside words of Persian and Hindi.
"""
_MAX_LENGTH = 100


def parse_classes(text: str) -> Vocabulary:
    """Parse the value of `--classes`: `coco`, `voc`, a file of names, or comma-separated names."""
    if text in ("coco", "voc"):
        return coco() if text == "coco" else voc()
    label = f"--classes {text[:80]!r}"
    try:
        path = expanded(text)
        if path.is_file():
            return _checked(read_class_file(path), f"the file {text}")
    except (OSError, ValueError) as error:  # the path is too long or contains a NUL
        if isinstance(error, UserError):
            raise
    if text.lower().endswith(SUFFIXES) or "/" in text:
        raise UserError(f"there is no class file {text}; give coco, voc, an existing file, or names such as dog,cat.")
    check_name(text, "--classes")
    try:
        names = split_row(text)
    except csv.Error as error:
        raise UserError(f"{label} cannot be parsed ({error}); give comma-separated names such as dog,cat.") from error
    vocabulary = _checked(names, label)
    for name in names:
        if problem := name_problem(name):
            raise UserError(
                f"the class {name[:60]!r} in {label} {problem}; give comma-separated names such as dog,cat."
            )
        if (known := name.strip().lower()) in ("coco", "voc"):  # a published model would draw a "COCO"
            raise UserError(
                f"{label} has the class {name.strip()!r}; give {known} alone for the classes of {known.upper()}, or "
                f"list all names in a file."
            )
    return vocabulary


def classes_field(text: str) -> str | list[str]:
    """The field `classes` of a recipe for the value of `--classes`."""
    vocabulary = parse_classes(text)
    return text if text in ("coco", "voc") else list(vocabulary.names)


def _checked(names: Sequence[str], label: str) -> Vocabulary:
    """Like `from_names`, with stricter checks for new input; existing recipes may contain such names."""
    for name in (name for name in names if name.strip()):
        problem = None
        if not any(character.isalpha() for character in name):
            problem = "has no letter; give names, not ids"
        elif _INVISIBLE.search(name):
            problem = f"contains an invisible character ({name[:60]!a}); retype the name"
        elif len(name) > _MAX_LENGTH:
            problem = f"is longer than {_MAX_LENGTH} characters; give one name per class"
        if problem is not None:
            raise UserError(f"the class {name.strip()[:60]!r} in {label} {problem}.")
    return from_names(names, label)
