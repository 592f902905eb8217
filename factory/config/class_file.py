"""Class names from a file: one per line, a CSV column, or a JSON or YAML list."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factory.config.vocabulary import coco
from factory.errors import UserError
from factory.files.strict_yaml import parse_plain_yaml
from factory.files.text import read_lines, read_text

SUFFIXES = (".txt", ".csv", ".tsv", ".names", ".json", ".yaml", ".yml", ".list")
"""File suffixes that distinguish a mistyped path from a class name."""

_HEADERS = ("name", "names", "class", "classes", "class name", "class_name", "label", "labels", "category")
_ONE_PER_LINE = "write one class name per line and nothing else"
_NOT_PLAIN = "is not a plain name"
_A_LIST = 'write ["dog", "cat"], {"names": ["dog", "cat"]}, or one name per line in a text file'


def read_class_file(path: Path) -> list[str]:
    """Read the class names of a file in order; raises UserError if the names cannot be identified unambiguously."""
    if path.suffix.lower() in (".json", ".yaml", ".yml"):
        return _names_of_data(path)
    lines = [(number, line) for number, line in read_lines(path, "class file") if not line.startswith("#")]
    if path.suffix.lower() in (".csv", ".tsv"):
        return _names_of_table(path, lines)
    if len(lines) == 1:
        return _names_of_one_line(path, *lines[0])
    _check_syntax(path, lines)
    return _plain_names(path, lines, ",")


def _names_of_data(path: Path) -> list[str]:
    """A list of names, or the list or numbered mapping under `names` or `classes` as in a YOLO data file."""
    text = read_text(path, "class file")
    if path.suffix.lower() == ".json":
        try:
            data = json.loads(text, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the class file {path} is not valid JSON ({error}); {_A_LIST}.") from error
    else:
        data = parse_plain_yaml(text, f"the class file {path}")
    if isinstance(data, dict):
        data = data.get("names", data.get("classes"))
    if isinstance(data, dict):
        data = _numbered(path, data)
    if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
        raise UserError(f"the class file {path} does not contain a list of names; {_A_LIST}.")
    if not all(name.strip() for name in data):
        raise UserError(f"the class file {path} contains an empty name; remove it, or give the class a name.")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for a repeated key, whose first value would be lost."""
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is repeated")
    return data


def _numbered(path: Path, data: dict[Any, Any]) -> list[Any]:
    """The values of `{0: dog, 1: cat}` in numeric order; the numbers must be consecutive."""
    try:
        numbered = sorted((int(number), name) for number, name in data.items())
    except (TypeError, ValueError) as error:
        raise UserError(f"the class file {path} must number its names 0, 1, 2 ...") from error
    numbers = [number for number, _ in numbered]
    if numbers not in (list(range(len(numbered))), list(range(1, len(numbered) + 1))):
        raise UserError(
            f"the class file {path} numbers its names {numbers[:5]}, but custom ids are not supported; {_ONE_PER_LINE}."
        )
    return [name for _, name in numbered]


def _names_of_table(path: Path, lines: Sequence[tuple[int, str]]) -> list[str]:
    """The column of names: the one with a known header, or the only column that is not numeric."""
    delimiter, other = ("\t", ",") if path.suffix.lower() == ".tsv" else (",", "\t")
    try:
        rows = [split_row(line, delimiter) for _, line in lines]
    except csv.Error as error:
        raise UserError(f"the class file {path} is not a valid table ({error}); {_ONE_PER_LINE}.") from error
    if len(rows) == 1 and len(rows[0]) > 1:
        return _plain_names(path, [(lines[0][0], cell) for cell in rows[0]], other)
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        raise UserError(f"the class file {path} has rows of {widths[0]} and {widths[-1]} columns; {_ONE_PER_LINE}.")
    headers = [" ".join(cell.lower().split()) for cell in rows[0]] if rows else []
    named = [k for k, header in enumerate(headers) if header in _HEADERS]
    named = [k for k in named if not all(_is_integer_or_blank(row[k]) for row in rows[1:])]
    body = rows[1:] if named else rows
    columns = named or [k for k in range(len(headers)) if not all(_is_integer_or_blank(row[k]) for row in rows)]
    if len(columns) != 1:
        raise UserError(
            f"the class file {path} has {len(headers)} columns and it is unclear which one contains the names; give "
            f"that column the header `name`, or {_ONE_PER_LINE}."
        )
    numbers = [number for number, _ in lines[len(rows) - len(body) :]]
    cells = [(number, row[columns[0]]) for number, row in zip(numbers, body, strict=True)]
    blank = next((number for number, cell in cells if not cell.strip()), None)
    if blank is not None:
        raise UserError(f"line {blank} of the class file {path} has no name; remove it, or give the class a name.")
    return _plain_names(path, cells, other)


def split_row(line: str, delimiter: str = ",") -> list[str]:
    """The cells of a line; csv.Error for an unbalanced quote, which would swallow the rest of the line or file."""
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True), [])


def _names_of_one_line(path: Path, number: int, line: str) -> list[str]:
    """A single name, or all names separated by commas."""
    try:
        names = split_row(line) if "," in line else [line]
    except csv.Error as error:
        raise UserError(f"the class file {path} is not a valid list ({error}); {_ONE_PER_LINE}.") from error
    _check_syntax(path, [(number, name) for name in names])
    _plain_names(path, [(number, name) for name in names])
    words = line.split()
    if len(names) == 1 and not _is_coco_class(line) and sum(_is_coco_class(word) for word in words) > 1:
        raise UserError(f"the class file {path} has all names on one line, {line[:60]!r}; {_ONE_PER_LINE}.")
    return names


def _check_syntax(path: Path, lines: Sequence[tuple[int, str]]) -> None:
    """Raise UserError for a line of a text file in the syntax of YAML, or with a comment after the name."""
    for number, line in lines:
        if name_problem(line) is None and re.search(r"^- |[:=]\s|[:=]$|#", line):
            raise UserError(f"line {number} of the class file {path}, {line[:60]!r}, {_NOT_PLAIN}; {_ONE_PER_LINE}.")


def _plain_names(path: Path, names: Sequence[tuple[int, str]], separators: str = "") -> list[str]:
    """The names, given with their line numbers; raises UserError unless all of them are plain (see `name_problem`)."""
    for number, name in names:
        if problem := name_problem(name, separators):
            raise UserError(f"line {number} of the class file {path}, {name[:60]!r}, {problem}; {_ONE_PER_LINE}.")
    if len(names) > 1 and all(re.match(r"[-+]?\d+\s", name) for _, name in names):
        raise UserError(f"each line of the class file {path} begins with a number: {names[0][1]!r}; {_ONE_PER_LINE}.")
    return [name for _, name in names]


def name_problem(name: str, separators: str = "") -> str | None:
    """Why a text is not one name but several, an id, or the syntax of another format; None if it may be a name."""
    if any(separator in name for separator in (";", "\t", "|", *separators)):
        return "contains more than one field"
    if re.match(r"[-+]?\d+\s*([:=.)]|$)", name):
        return "begins with a number"
    return _NOT_PLAIN if re.search(r"^[\[\]{}<]|[\]}]$", name) else None


def _is_integer_or_blank(text: str) -> bool:
    return re.fullmatch(r"\s*[-+]?\d*\s*", text) is not None


def _is_coco_class(text: str) -> bool:
    return coco().find(text) is not None
