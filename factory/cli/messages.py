"""Functions that print messages of the library; Ray can send them to other processes."""

import typer

from factory.errors import printable


def to_stdout(text: str) -> None:
    """Print a line to standard output immediately."""
    typer.echo(printable(text))


def to_stderr(text: str) -> None:
    """Print a line to standard error, because standard output is for results."""
    typer.echo(printable(text), err=True)


def to_nowhere(text: str) -> None:
    """Drop the message."""
