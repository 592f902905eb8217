"""Functions that print messages of the library; Ray can send them to other processes."""

import errno
import logging
import sys

import typer

from factory import log_format
from factory.errors import full_disk, printable
from factory.signals import leave_closed_terminal

_log = logging.getLogger("factory.messages")


def to_stdout(text: str) -> None:
    """Print a line to standard output immediately.

    Characters that its encoding lacks are escaped, as on standard error: the names of classes must not end a command
    whose work is done.
    """
    leave_closed_terminal()
    encoding = sys.stdout.encoding or "utf-8"
    typer.echo(printable(text).encode(encoding, "backslashreplace").decode(encoding))


def to_stderr(text: str) -> None:
    """Print a line to standard error, because standard output is for results; a log record if JSON is requested."""
    if log_format.wants_json() and _log.hasHandlers():
        _log.info("%s", text)
    else:
        print_line(printable(text))


def print_line(text: str) -> None:
    """Print a line to standard error.

    It may be a file on a full disk, or a terminal that has just been closed. Neither must end a run or change its exit
    code.
    """
    leave_closed_terminal()
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError as error:
        if error.errno != errno.EIO and full_disk(error) is None:  # a closed pipe, for instance
            raise
