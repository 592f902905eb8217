"""Functions that print messages of the library; Ray can send them to other processes."""

import logging
import sys

import typer

from factory import log_format
from factory.errors import full_disk, printable

_log = logging.getLogger("factory.messages")


def to_stdout(text: str) -> None:
    """Print a line to standard output immediately."""
    typer.echo(printable(text))


def to_stderr(text: str) -> None:
    """Print a line to standard error, because standard output is for results; a log record if JSON is requested."""
    if log_format.wants_json() and _log.hasHandlers():
        _log.info("%s", text)
    else:
        print_line(printable(text))


def print_line(text: str) -> None:
    """Print a line to standard error, which may be a file; its full disk must not end a run or change its exit code."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError as error:
        if full_disk(error) is None:  # a closed pipe, for instance
            raise


def to_nowhere(text: str) -> None:
    """Drop the message."""
