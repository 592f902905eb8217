"""Class names from a file: one per line, a CSV column, or a JSON or YAML list."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factory.errors import UserError
from factory.files.strict_yaml import parse_plain_yaml
from factory.files.text import read_lines, read_text

SUFFIXES = (".txt", ".csv", ".tsv", ".names", ".json", ".yaml", ".yml", ".list")
"""What tells a mistyped file from a class name."""

_HEADS = ("name", "names", "class", "classes", "class name", "class_name", "label", "labels", "category")
_ONE_PER_LINE = "write one class name per line, and nothing else"


def read_class_file(path: Path) -> list[str]:
    """The names of a class file in its order; UserError where it is not clear what the names are."""
    if path.suffix.lower() in (".json", ".yaml", ".yml"):
        return _of_data(path)
    rows = [(number, line) for number, line in read_lines(path, "class file") if not line.startswith("#")]
    if path.suffix.lower() in (".csv", ".tsv"):
        return _of_table(path, [line for _, line in rows])
    if len(rows) == 1:
        return _of_one_line(path, rows[0][1])
    for number, line in rows:
        _check_line(path, number, line)
    if rows and all(re.match(r"[-+]?\d+\s", line) for _, line in rows):
        raise UserError(f"each line of the class file {path} begins with a number, as {rows[0][1]!r}; {_ONE_PER_LINE}.")
    return [line for _, line in rows]


def _of_data(path: Path) -> list[str]:
    """A list of names, or the list or numbered mapping under `names` or `classes`, as in a YOLO data file."""
    text = read_text(path, "class file")
    if path.suffix.lower() == ".json":
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the class file {path} is no JSON ({error}); {_ONE_PER_LINE}.") from error
    else:
        data = parse_plain_yaml(text, f"the class file {path}")
    if isinstance(data, dict):
        data = data.get("names", data.get("classes"))
    if isinstance(data, dict):
        data = _numbered(path, data)
    if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
        raise UserError(
            f'the class file {path} holds no list of names; write ["dog", "cat"], {{"names": ["dog", "cat"]}}, or one '
            f"name per line in a text file."
        )
    return data


def _numbered(path: Path, data: dict[Any, Any]) -> list[Any]:
    """`{0: dog, 1: cat}` in the order of its numbers, which count on without a gap."""
    try:
        rows = sorted((int(number), name) for number, name in data.items())
    except (TypeError, ValueError) as error:
        raise UserError(f"the class file {path} numbers its names by something else than 0, 1, 2 ...") from error
    numbers = [number for number, _ in rows]
    if numbers not in (list(range(len(rows))), list(range(1, len(rows) + 1))):
        raise UserError(
            f"the class file {path} numbers its names {numbers[:5]}; ids of one's own are not kept: {_ONE_PER_LINE}."
        )
    return [name for _, name in rows]


def _of_table(path: Path, lines: Sequence[str]) -> list[str]:
    """The column of names: the one whose head says so, or the only one that is not all numbers."""
    try:
        rows = list(csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", skipinitialspace=True))
    except csv.Error as error:
        raise UserError(f"the class file {path} is no table ({error}); {_ONE_PER_LINE}.") from error
    if len(rows) == 1 and len(rows[0]) > 1:
        return rows[0]
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        raise UserError(f"the class file {path} has rows of {widths[0]} and of {widths[-1]} columns; {_ONE_PER_LINE}.")
    heads = [" ".join(cell.lower().split()) for cell in rows[0]] if rows else []
    named = [k for k, head in enumerate(heads) if head in _HEADS and not all(_number(row[k]) for row in rows[1:])]
    body = rows[1:] if named else rows
    columns = named or [place for place in range(len(heads)) if not all(_number(row[place]) for row in rows)]
    if len(columns) != 1:
        raise UserError(
            f"the class file {path} has {len(heads)} columns and does not say which one holds the names; give that "
            f"column the head `name`, or {_ONE_PER_LINE}."
        )
    return [row[columns[0]] for row in body]


def _of_one_line(path: Path, line: str) -> list[str]:
    """One name, or all names with commas between them."""
    if "," in line:
        return next(csv.reader([line], skipinitialspace=True), [])
    _check_line(path, 1, line)
    words = line.split()
    if len(words) > 1 and not _known(line) and sum(_known(word) for word in words) > 1:
        raise UserError(f"the class file {path} has the names {line[:60]!r} all in one line; {_ONE_PER_LINE}.")
    return [line]


def _check_line(path: Path, number: int, line: str) -> None:
    """UserError for a line that is no plain name: several names, an id, or another format's syntax."""
    if re.search(r"[,;\t|]", line):
        told = "holds more than one field"
    elif re.match(r"[-+]?\d+\s*([:=.)]|$)", line):
        told = "begins with a number"
    elif re.match(r"[\[\]{}<]|- ", line) or re.search(r"[:=]\s|[:=]$|#", line):
        told = "is not a plain name"
    else:
        return
    raise UserError(f"line {number} of the class file {path}, {line[:60]!r}, {told}; {_ONE_PER_LINE}.")


def _number(text: str) -> bool:
    return re.fullmatch(r"\s*[-+]?\d*\s*", text) is not None


def _known(text: str) -> bool:
    from factory.config.vocabulary import coco

    return coco().find(text) is not None
