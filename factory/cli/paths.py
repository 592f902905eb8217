"""Makes all options and arguments of type Path reject URLs."""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from typer.models import CommandInfo, OptionInfo, ParameterInfo

from factory.errors import UserError
from factory.files.paths import local_path

PATH = "PATH"
"""The metavar of such options, by which `factory run` recognises them."""


def refuse_urls(commands: Iterable[CommandInfo]) -> None:
    """Make every parameter of type Path reject a URL with a clear error."""
    for command in commands:
        assert command.callback is not None
        for name, info in _paths(command.callback):
            label = f"--{name.replace('_', '-')}" if isinstance(info, OptionInfo) else name.upper()
            info.parser = partial(_parsed, label)
            info.metavar = info.metavar or PATH


def _paths(command: Callable[..., Any]) -> Iterable[tuple[str, ParameterInfo]]:
    for name, parameter in inspect.signature(command).parameters.items():
        kind, *metadata = get_args(parameter.annotation) or (parameter.annotation,)
        kinds = get_args(kind) if get_origin(kind) else (kind,)
        yield from ((name, info) for info in metadata if isinstance(info, ParameterInfo) and Path in kinds)


def _parsed(label: str, value: str | Path) -> Path:
    if isinstance(value, Path):
        return value
    try:
        return local_path(value, label)
    except UserError as error:
        raise typer.BadParameter(str(error)) from error
