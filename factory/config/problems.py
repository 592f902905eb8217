"""Rewords the messages of pydantic about invalid fields, so that all messages are alike."""

import difflib
import re
import reprlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

_SHOWN = 10
"""Invalid fields named in a message."""
_LENGTH = 60
"""Characters of a value that a message shows."""
_RULES = {
    r"^Value error, ": "",
    r"^(Input|String|List|Tuple|Set|Dictionary) should ": "must ",
    r"greater than or equal to": "at least",
    r"less than or equal to": "at most",
    r", unable to .*": "",
    r", got a number with a fractional part": "",
    r" after validation\b": "",
    r"a valid dictionary( or instance of \w+)?": "a mapping of fields to values",
    r"a valid (tuple|list)": "a list",
    r"a valid string": "a string",
    r"\.$": "",
}
"""Messages of pydantic and their replacements."""


def invalid_field(name: str, problem: str, got: str) -> str:
    """Pydantic's message about a field, without a full stop; `got` describes the value, such as ", got 0"."""
    for pattern, replacement in _RULES.items():
        problem = re.sub(pattern, replacement, problem)
    if problem == "Field required":
        return f"{name} is missing"
    if problem == "Extra inputs are not permitted":
        return f"there is no field {name}"
    continues = re.match(r"(must|is|are|has|have|holds) ", problem)
    return f"{name}{'' if continues else ':'} {problem}{got}"


def recipe_problems(errors: "list[ErrorDetails]", model: "type[BaseModel]") -> str:
    """The invalid fields of a recipe, or the first of many, in one sentence without a full stop.

    `model` is the type of the recipe; a field that it does not have may be a typing error.
    """
    found = _without_alternatives(errors)
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return "; ".join([*(_problem(details, model) for details in found[:_SHOWN]), *more])


def _without_alternatives(errors: "list[ErrorDetails]") -> "list[ErrorDetails]":
    """The errors, except those which only say that a list or a table is not a name such as `coco`."""
    return [details for details in errors if not str((details["loc"] or ("",))[-1]).startswith("literal[")]


def _problem(details: "ErrorDetails", model: "type[BaseModel]") -> str:
    """An invalid field with its value, or what is wrong with the recipe as a whole."""
    # In a field of several types, pydantic adds the type to the path.
    field = field_name([part for part in details["loc"] if not str(part).startswith(("tuple[", "dict["))])
    if not field:
        return details["msg"].removeprefix("Value error, ").rstrip(".")
    if details["type"] == "extra_forbidden":
        similar = _similar(field, list(fields_of(model)))
        return f"there is no field {field}" + (f" (did you mean {similar}?)" if similar else "")
    # A secret that was written to `store` by mistake must not be logged.
    return invalid_field(field, details["msg"], "" if field.startswith("store") else shown(details["input"]))


def fields_of(model: "type[BaseModel]", prefix: str = "") -> Iterator[str]:
    """The fields of a recipe and of its sections, such as n and generator.steps."""
    for name, info in model.model_fields.items():
        yield prefix + name
        for section in sections_in(info.annotation):
            yield from fields_of(section, f"{prefix}{name}.")


def sections_in(annotation: Any) -> "list[type[BaseModel]]":
    """The models in the type of a field; none for numbers and texts."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [model for part in get_args(annotation) for model in sections_in(part)]


def _similar(field: str, fields: list[str]) -> str | None:
    """The field with the same or a similar name, preferably in the same section."""
    section, _, name = field.rpartition(".")
    by_name: dict[str, str] = {}
    for known in sorted(fields, key=lambda known: known.rpartition(".")[0] != section):
        by_name.setdefault(known.rpartition(".")[2], known)
    matches = difflib.get_close_matches(name.lower(), by_name, 1, 0.75)
    return by_name[matches[0]] if matches else None


def field_name(location: Sequence[int | str]) -> str:
    """The path of a field, such as generator.steps; a file may contain keys of any length."""
    return ".".join(str(part)[:_LENGTH] for part in location)


def shown(value: object) -> str:
    """A value for a message, shortened while it is formatted: a few lines of nested aliases expand to gigabytes."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, _LENGTH, _LENGTH
    text = short.repr(value)
    return f" (got {text if len(text) <= _LENGTH else text[: _LENGTH - 3] + '...'})"
