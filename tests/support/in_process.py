"""Commands of `factory` in this process: what they print, the message of their error, and the state of a run."""

import functools
from typing import Any

import typer
from typer.testing import CliRunner, Result

from factory import exit_codes
from factory.cli.main import app
from factory.errors import UserError
from factory.generation.progress import Snapshot

SNAPSHOT = Snapshot("running", 30, 100, 3, 10, 2.5, 12.0, 3725.0, 2, 1, {"mask_small": 4, "low_confidence": 1}, 1, 0.0,
                    24.0, 5, [7, 8], ["a worker was lost"], 1, "2026-11-25T21:00:00+00:00")  # fmt: skip


@functools.cache
def commands() -> dict[str, Any]:
    """The parser of each command by name, as a workflow needs them."""
    return dict(typer.main.get_command(app).commands)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def output(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def error(*arguments: object, code: int = exit_codes.BAD_INPUT) -> str:
    """The message of a command that ends with an error of this exit code."""
    result = invoke(*arguments)
    assert isinstance(result.exception, UserError), result.output + repr(result.exception)
    assert result.exception.exit_code == code
    message = str(result.exception)
    assert message.endswith("."), message
    return message
