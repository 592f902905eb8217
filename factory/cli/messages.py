"""Functions that print messages of the library; Ray can send them to other processes."""

import logging

import typer

from factory import log_format
from factory.errors import printable

_log = logging.getLogger("factory.messages")


def to_stdout(text: str) -> None:
    """Print a line to standard output immediately."""
    typer.echo(printable(text))


def to_stderr(text: str) -> None:
    """Print a line to standard error, because standard output is for results; a log record if JSON is requested."""
    if log_format.wants_json() and _log.hasHandlers():
        _log.info("%s", text)
    else:
        typer.echo(printable(text), err=True)


def to_nowhere(text: str) -> None:
    """Drop the message."""
