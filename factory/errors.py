"""The one error that a user can cause and mend."""


class UserError(ValueError):
    """Bad input. The message is a sentence: what was given, what is allowed, what to do. Exit code 2."""
