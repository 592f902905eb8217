"""Rewords the messages of pydantic and click about invalid values, so that all messages are alike."""

import difflib
import re
import reprlib
import sys
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

_INVALID = re.compile(r"Invalid value for '([^']+)'(?: / '[^']+')*: (?:Value error, )?(.*)")
_USAGE = {
    r"^Missing (?:option|argument) '([^']+)'(?: / '[^']+')*": r"\1 is missing",
    r"\. Choose from:": "; choose from",
    r"^No such option: (\S+)": r"there is no option \1",
    r" \(Possible options: .*\)": "",
    r"^No such command ('.*?')": r"there is no command \1",
    r"\. Did you mean (.*)\?$": r" (did you mean \1?)",
    r"^Got unexpected extra arguments?(?:\(s\))? \((.*)\)": r"unexpected argument \1",
    r"^Option '(\S+)' requires an argument": r"\1 requires a value",
    r"^Option '(\S+)' ": r"\1 ",
}
"""Messages of click and their replacements."""


def usage_text(error: Exception) -> str | None:
    """A usage error of click, or of typer's copy of it, as a sentence without a full stop; None for other errors."""
    if not hasattr(error, "format_message"):
        return None
    text = " ".join(error.format_message().split()).rstrip(".")
    invalid = _INVALID.fullmatch(text)
    if invalid is not None:
        return _invalid_text(invalid[1], invalid[2], error.__cause__)
    for pattern, replacement in _USAGE.items():
        text = re.sub(pattern, replacement, text)
    if text.startswith("there is no option"):
        text += _option_hint(error)
    if text.startswith("unexpected argument") and any(word.endswith(",") for word in sys.argv):
        text += " (write lists without spaces, such as dog,cat)"
    return text


def _option_hint(error: Any) -> str:
    """What an unknown option may be: a field of the recipe, if the command reads a complete one, or similar options."""
    params = {param.name for param in error.ctx.command.params} if error.ctx is not None else set()
    if {"recipe", "seed"} <= params:  # `invert` reads only a section
        from factory.config.recipe import Recipe

        name = error.option_name.lstrip("-").replace("-", "_")
        fields = list(_fields(Recipe))
        found = next((field for field in fields if field.rpartition(".")[2] == name), None)
        if found is not None and not any(field.startswith(f"{found}.") for field in fields):  # not a whole section
            return f" (set {found} in a recipe)"
    likely = [known for known in error.possibilities or () if _are_similar(known, error.option_name)]
    return f" (did you mean {' or '.join(likely)}?)" if likely else ""  # the most similar one first


def _are_similar(option: str, other: str) -> bool:
    """Whether one may be meant by the other; click also compares the dashes, so --n is similar to --json for it."""
    names = option.lstrip("-"), other.lstrip("-")
    return names[0].startswith(names[1]) or difflib.SequenceMatcher(None, *names).ratio() > 0.55


def _invalid_text(name: str, problem: str, cause: BaseException | None) -> str:
    """The sentence about the value of an option or argument, which pydantic rejected with `cause`."""
    if problem.startswith(name):
        return problem
    choice = re.fullmatch(r"('.*') is not one of (.*)", problem)
    if choice is not None:
        allowed = choice[2].replace("'", "")
        return f"{name} must be one of {allowed}; got {choice[1]}"
    errors = getattr(cause, "errors", None)
    got = "" if errors is None else f", got {errors()[0]['input']}"
    return invalid_field(name, problem, got)


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
        similar = _similar(field, list(_fields(model)))
        return f"there is no field {field}" + (f" (did you mean {similar}?)" if similar else "")
    # A secret that was written to `store` by mistake must not be logged.
    return invalid_field(field, details["msg"], "" if field.startswith("store") else shown(details["input"]))


def _fields(model: "type[BaseModel]", prefix: str = "") -> Iterator[str]:
    """The fields of a recipe and of its sections, such as n and generator.steps."""
    for name, info in model.model_fields.items():
        yield prefix + name
        for section in sections_in(info.annotation):
            yield from _fields(section, f"{prefix}{name}.")


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
