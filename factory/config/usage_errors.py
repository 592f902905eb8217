"""Rewords usage errors of click, so that all messages are alike."""

import difflib
import re
import sys
from typing import Any

from factory.config.problems import fields_of, invalid_field

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
        fields = list(fields_of(Recipe))
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
