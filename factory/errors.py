"""Errors that end a command with a one-sentence message, and how they quote others. Each class has its exit code."""

import re
from collections.abc import Sequence

from factory import exit_codes


class UserError(ValueError):
    """Bad input. The message states what was given, what is allowed and what to do. Exit code 2."""

    exit_code: int = exit_codes.BAD_INPUT


class TransientError(UserError):
    """A temporary external failure: an outage, a lost cluster, a full disk. Exit code 75.

    The message states what happened, that committed work is kept, and that rerunning the same command resumes.
    """

    exit_code: int = exit_codes.TRY_AGAIN


class RunFailedError(UserError):
    """Workers failed repeatedly and further retries are pointless. Exit code 3."""

    exit_code: int = exit_codes.FAILED


class GpuError(UserError):
    """A worker cannot use its GPU, or its models do not fit into the memory. Exit code 2."""


class StoreUnavailableError(TransientError):
    """The storage did not respond within its `patience`; rerun the command later."""


class LeaseHeldError(TransientError):
    """Another driver is working on the dataset; rerun the command when it has finished."""


def first_few(names: Sequence[object], shown: int = 3) -> str:
    """The first names, separated by commas, and "..." if there are more."""
    return ", ".join(map(str, names[:shown])) + (", ..." if len(names) > shown else "")


def one_line(error: BaseException, length: int = 200) -> str:
    """The first `length` characters of an error's message, in one line; the name of its class if it has none."""
    return " ".join(str(error).split())[:length] or type(error).__name__


_INVALID = re.compile(r"Invalid value for '([^']+)'(?: / '[^']+')*: (?:Value error, )?(.*)")
_USAGE = {
    r"^Missing (?:option|argument) '([^']+)'(?: / '[^']+')*": r"\1 is missing",
    r"\. Choose from:": "; choose from",
    r"^No such option: (\S+)": r"there is no option \1",
    r"\(Possible options: (.*)\)": r"(did you mean \1?)",
    r"^No such command ('.*?')": r"there is no command \1",
    r"\. Did you mean (.*)\?$": r" (did you mean \1?)",
    r"^Got unexpected extra arguments?(?:\(s\))? \((.*)\)": r"unexpected argument \1",
    r"^Option '(\S+)' requires an argument": r"\1 requires a value",
    r"^Option '(\S+)' ": r"\1 ",
}
"""Messages of click and how they are worded here."""


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
    return text


def _invalid_text(name: str, problem: str, cause: BaseException | None) -> str:
    """The sentence about the value of an option or argument, which pydantic rejected with `cause`."""
    if problem.startswith(name):
        return problem
    choice = re.fullmatch(r"('.*') is not one of (.*)", problem)
    if choice is not None:
        allowed = choice[2].replace("'", "")
        return f"{name} must be one of {allowed}; got {choice[1]}"
    rule = re.fullmatch(r"Input should be ([^,]*).*", problem)
    if rule is None:
        return f"{name}: {problem}"
    errors = getattr(cause, "errors", None)
    got = "" if errors is None else f", got {errors()[0]['input']}"
    return f"{name} must be {rule[1]}{got}"
