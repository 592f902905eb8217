"""Validates every option of every step of a job, as the command itself would, before the first step runs."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from factory.config.usage_errors import usage_text
from factory.errors import UserError
from factory.files.paths import local_path

Fill = Callable[[object], str]
_GENERATING = ("bootstrap-oracle", "generate", "plan")
"""Commands whose --model is an embedded model by default."""


def steps_of(data: Any, where: str) -> list[tuple[str, Any]]:
    """(command, options) of each step of a job. UserError if the data is not a valid job."""
    if not isinstance(data, dict) or not isinstance(data.get("steps"), list) or not data["steps"] or "out" not in data:
        raise UserError(f"{where} is not a job: it requires `out:` and `steps:`, each step a command with options.")
    unknown = sorted(set(data) - {"out", "values", "steps"})
    if unknown:
        raise UserError(f"{where} has an unknown key {unknown[0]!r}; the keys of a job are out, values and steps.")
    if not isinstance(data["out"], str) or not data["out"].strip():
        raise UserError(f"{where}: `out:` must be the path of a folder, got {data['out']!r}.")
    steps = []
    for number, step in enumerate(data["steps"], 1):
        if not isinstance(step, dict) or len(step) != 1:
            got = f"{len(step)} commands: {', '.join(step)}" if isinstance(step, dict) else repr(step)[:80]
            raise UserError(f"{where}: step {number} must be one command with its options, got {got}.")
        steps += list(step.items())
    return steps


def values_of(data: Mapping[str, Any], where: str) -> dict[str, str]:
    """The values of a job by name. UserError if one of them is not a single value."""
    values = data.get("values")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{where}: `values:` must map names to single values, got {values!r:.80}.")
    for name, value in values.items():
        if name == "out":
            raise UserError(f"{where}: a value cannot be named 'out', which is the folder of the job; rename it.")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(
                f"{where}: a value cannot be named {name!r}; a name consists of letters, digits and _, and does not "
                f"start with a digit."
            )
        if not isinstance(value, str):
            raise UserError(f"{where}: the value {name} must be a string or a number, got {_shown(value)}.")
    return dict(values)


def arguments_of(where: str, name: str, options: Any, command: Any, fill: Fill) -> tuple[str, ...]:
    """The command-line arguments of a step. UserError for anything that the command itself would reject.

    `command` is the click command. An option has one value, or a list of values if it can be given several times;
    `with` holds the positional arguments; a flag is true or false.
    """
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise UserError(
            f"{where}: the options of {name} must be `option: value` pairs, got {options!r:.80}; see docs/jobs.md."
        )
    step = f"{where}: {name}"
    known = {flag.removeprefix("--"): param for param in command.params for flag in param.opts if flag[:2] == "--"}
    arguments: list[str] = []
    for option, value in options.items():
        location = f"{step}: {option}"
        if option == "with":
            arguments += [fill(argument) for argument in _values(value, location, True)]
        elif option not in known:
            raise UserError(f"{step} has no option {option!r}; its options are {', '.join(sorted(known))}.")
        elif known[option].is_flag:
            if not isinstance(value, bool):
                raise UserError(f"{location} must be true or false, got {_shown(value)}.")
            arguments += [f"--{option}"] if value else []
        else:
            for argument in _values(value, location, bool(known[option].multiple)):
                arguments += [f"--{option}", fill(argument)]
                if known[option].metavar == "PATH":
                    local_path(arguments[-1], f"{where}: --{option} of {name}")
    _parse(step, name, command, arguments)
    texts = {option: fill(options[option]) for option in ("classes", "objects", "model") if option in options}
    _check_texts(step, texts, generates=name in _GENERATING and "recipe" not in options)
    return tuple(arguments)


def _values(value: Any, location: str, several: bool) -> list[Any]:
    if isinstance(value, list) and not several:
        raise UserError(f'{location} takes one value, got a list of {len(value)}; write names as one text: "dog,cat".')
    values = value if isinstance(value, list) else [value]
    for single in values:
        if not isinstance(single, str):
            raise UserError(
                f"{location} must be a string or a number, got {_shown(single)}; omit an option without a value."
            )
    return values


def _shown(value: Any) -> str:
    """A value as it is written in YAML."""
    if value is None:
        return "nothing (null)"
    return str(value).lower() if isinstance(value, bool) else repr(value)[:80]


def _parse(location: str, name: str, command: Any, arguments: list[str]) -> None:
    """Parse the arguments with the command, and the rest with its subcommand, without running either."""
    if "--help" in arguments:
        raise UserError(f"{location}: --help has no effect in a job; omit it.")
    if not arguments and hasattr(command, "commands"):
        raise UserError(f"{location} requires a subcommand under `with:`: {', '.join(command.commands)}.")
    try:
        context = command.make_context(name, list(arguments))
        with context:
            if hasattr(command, "resolve_command"):
                remaining = [*context._protected_args, *context.args]
                subname, subcommand, rest = command.resolve_command(context, remaining)
                subcommand.make_context(subname, rest, parent=context).close()
    except Exception as error:
        text = usage_text(error)
        if text is None:
            raise
        raise UserError(f"{location}: {text}.") from error


def _check_texts(location: str, texts: Mapping[str, str], generates: bool) -> None:
    """Check texts that the parser accepts but the command rejects, perhaps hours after the start of the job."""
    from factory.config.class_option import parse_classes
    from factory.config.object_counts import parse_objects
    from factory.config.stickers import EMBEDDED_MODELS, STICKERS, check_embedded_classes

    try:
        if "classes" in texts:
            vocabulary = parse_classes(texts["classes"])
            if generates and texts.get("model", STICKERS) in EMBEDDED_MODELS:
                check_embedded_classes(vocabulary)
        if "objects" in texts:
            parse_objects(texts["objects"])
    except UserError as error:
        raise UserError(f"{location}: {error}") from error
