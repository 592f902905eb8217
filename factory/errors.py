"""Errors that end a command with a one-sentence message, and how they quote others. Each class has its exit code."""

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
