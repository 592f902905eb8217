"""The errors that end a command with one sentence; each class has its exit code."""

from factory import exit_codes


class UserError(ValueError):
    """Bad input. The message is a sentence: what was given, what is allowed, what to do. Exit code 2."""

    exit_code: int = exit_codes.BAD_INPUT


class TransientError(UserError):
    """Trouble outside this program that passes: an outage, a lost cluster, no room. Exit code 75.

    The message says what happened, that committed work is kept, and that the same command continues.
    """

    exit_code: int = exit_codes.TRY_AGAIN


class GivenUpError(UserError):
    """Workers fail again and again, so that trying once more is of no use. Exit code 3."""

    exit_code: int = exit_codes.GIVEN_UP


class StoreUnavailableError(TransientError):
    """The storage did not answer for longer than its patience: trouble that passes, to be tried again later."""


class LeaseHeldError(TransientError):
    """Another driver works on the dataset: to be tried again when it is done."""
