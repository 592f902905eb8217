"""Where commands print the messages of the library. Functions, so that Ray can send them to other processes."""

import typer


def to_stdout(text: str) -> None:
    """Print a line to standard output at once."""
    typer.echo(text)


def to_stderr(text: str) -> None:
    """Print a line to standard error, which leaves standard output to results."""
    typer.echo(text, err=True)


def to_nowhere(text: str) -> None:
    """Drop the message."""
