"""Checks every option of every step of a job as the command itself would, before the first step runs."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from factory.errors import UserError
from factory.files.paths import local_path

Fill = Callable[[object], str]


def steps_of(data: Any, where: str) -> list[tuple[str, Any]]:
    """(command, options) of each step of a job's data; UserError where it is no job."""
    form = f"{where} is no job: it wants `out:` and `steps:`, each step a command with options"
    if not isinstance(data, dict) or not isinstance(data.get("steps"), list) or not data["steps"] or "out" not in data:
        raise UserError(f"{form}.")
    unknown = sorted(set(data) - {"out", "values", "steps"})
    if unknown:
        raise UserError(f"{where} has no part {unknown[0]!r}; a job has out, values and steps.")
    if not isinstance(data["out"], str) or not data["out"].strip():
        raise UserError(f"{where}: `out:` is the path of a folder, got {data['out']!r}.")
    steps = []
    for number, row in enumerate(data["steps"], 1):
        if not isinstance(row, dict) or len(row) != 1:
            told = f"{len(row)} commands: {', '.join(row)}" if isinstance(row, dict) else repr(row)[:80]
            raise UserError(f"{where}: step {number} is one command with its options, got {told}.")
        steps += list(row.items())
    return steps


def values_of(data: Mapping[str, Any], where: str) -> dict[str, str]:
    """The job's values by name; UserError where one is no single value."""
    values = data.get("values")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{where}: `values:` are names with a value each, got {values!r:.80}.")
    for name, value in values.items():
        if name == "out" or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            told = "is the job's folder" if name == "out" else "is no name of letters, digits and _"
            raise UserError(f"{where}: a value cannot be called {name!r}, which {told}; rename it.")
        if not isinstance(value, str):
            raise UserError(f"{where}: the value {name} is a text or a number, got {_shown(value)}.")
    return dict(values)


def arguments_of(where: str, name: str, options: Any, command: Any, fill: Fill) -> tuple[str, ...]:
    """The command line of a step's options; UserError for what the command would refuse.

    `command` is the one of the command line. An option has one value, or a list where it may be given several times;
    `with` holds what stands without a name; a flag is true or false.
    """
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise UserError(f"{where}: the options of {name} are `option: value`, got {options!r:.80}; see docs/jobs.md.")
    known = {flag.removeprefix("--"): one for one in command.params for flag in one.opts if flag.startswith("--")}
    arguments: list[str] = []
    for option, value in options.items():
        at = f"{where}: {name}: {option}"
        if option == "with":
            arguments += [fill(one) for one in _values(value, at, True)]
        elif option not in known:
            raise UserError(f"{where}: {name} has no option {option!r}; it has {', '.join(sorted(known))}.")
        elif known[option].is_flag:
            if not isinstance(value, bool):
                raise UserError(f"{at} is true or false, got {_shown(value)}.")
            arguments += [f"--{option}"] if value else []
        else:
            for one in _values(value, at, bool(known[option].multiple)):
                arguments += [f"--{option}", fill(one)]
                if known[option].metavar == "PATH":
                    local_path(arguments[-1], f"{where}: --{option} of {name}")
    _parse(f"{where}: {name}", name, command, arguments)
    _check_words(
        f"{where}: {name}", {option: fill(options[option]) for option in ("classes", "objects") if option in options}
    )
    return tuple(arguments)


def _values(value: Any, at: str, several: bool) -> list[Any]:
    if isinstance(value, list) and not several:
        raise UserError(f'{at} has one value, got a list of {len(value)}; write names as one text: "dog,cat".')
    values = value if isinstance(value, list) else [value]
    for one in values:
        if not isinstance(one, str):
            raise UserError(f"{at} is a text or a number, got {_shown(one)}; leave out what has no value.")
    return values


def _shown(value: Any) -> str:
    return {None: "nothing (null)", True: "true", False: "false"}.get(value, "") if _plain(value) else repr(value)[:80]


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _parse(at: str, name: str, command: Any, arguments: list[str]) -> None:
    """Let the command read its own arguments, and its subcommand what is left; nothing is run."""
    if "--help" in arguments:
        raise UserError(f"{at}: --help does no work; leave it out.")
    if not arguments and hasattr(command, "commands"):
        raise UserError(f"{at} has commands of its own, {', '.join(command.commands)}; give one under `with:`.")
    try:
        context = command.make_context(name, list(arguments))
        with context:
            if hasattr(command, "resolve_command"):
                left = [*context._protected_args, *context.args]
                found, inner, rest = command.resolve_command(context, left)
                inner.make_context(found, rest, parent=context).close()
    except Exception as error:
        # The class of these errors moved between click and typer's own copy of it; the method is in both.
        if not hasattr(error, "format_message"):
            raise
        raise UserError(f"{at}: {' '.join(error.format_message().split())}") from error


def _check_words(at: str, words: Mapping[str, str]) -> None:
    """What the parser takes for any text and the command refuses when it starts, perhaps after hours of others."""
    from factory.config.recipe import parse_objects
    from factory.config.vocabulary import parse_classes

    try:
        if "classes" in words:
            parse_classes(words["classes"])
        if "objects" in words:
            parse_objects(words["objects"])
    except UserError as error:
        raise UserError(f"{at}: {error}") from error
