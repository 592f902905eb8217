"""Errors that end a command with a one-sentence message, and the wording of messages. Each class has its exit code."""

import errno
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

from factory import exit_codes

_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except line feeds, characters that change the direction of text, and unpaired surrogates."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DAMAGED = (errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO))  # only Linux has EUCLEAN
"""A disk or file system cannot read or write a file."""


class UserError(ValueError):
    """Invalid input (exit code 2), and the base class of all errors with a one-sentence message.

    The message states what was given, what is allowed and what to do. `exit_code` is the code with which a command
    ends.
    """

    exit_code: int = exit_codes.BAD_INPUT


class TransientError(UserError):
    """A temporary failure outside of factory, such as an outage, a lost cluster or a full disk. Exit code 75.

    Committed work is kept, and rerunning the same command resumes.
    """

    exit_code: int = exit_codes.TRY_AGAIN


class RunFailedError(UserError):
    """Workers failed repeatedly, so the run was given up. Exit code 3."""

    exit_code: int = exit_codes.FAILED


class GpuError(UserError):
    """A worker cannot use its GPU, or its models do not fit into the GPU memory. Exit code 2."""


class StoreUnavailableError(TransientError):
    """The store did not respond within `store.patience` seconds. Exit code 75."""


class LeaseHeldError(TransientError):
    """Another driver is working on the dataset. Exit code 75."""


def not_written(path: object, error: OSError, advice: str) -> UserError:
    """The error for a file or folder that cannot be written; that of a full disk is temporary. `advice` ends it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TransientError(f"no space left for {path}; free some space and rerun the same command.")
    return UserError(f"{path} cannot be written ({error.strerror}); {advice}.")


def full_disk(error: BaseException) -> str | None:
    """What is full or limited (the disk, a quota, the size of files) if that caused an error; None for other errors."""
    return next((os.strerror(number) for number, _ in _system_errors(error) if number in _FULL), None)


def broken_disk(error: BaseException) -> str | None:
    """A sentence about a disk that cannot read or write a file, if that caused an error; None for other errors.

    A disk that fails can become read-only in the middle of a file.
    """
    for number, path in _system_errors(error):
        if number in (*DAMAGED, errno.EROFS):
            return f"cannot use {path or 'a file'}: {os.strerror(number)}; check the disk, and rerun the same command."
    return None


def _system_errors(error: BaseException) -> Iterator[tuple[int, object]]:
    """(number, path if known) of an error and of its causes.

    Libraries replace the OSError of a write by an error of their own: PyTorch keeps it as context, safetensors only its
    text.
    """
    cause: BaseException | None = error
    while cause is not None:
        named = re.search(r"\(os error (\d+)\)", str(cause))
        if isinstance(cause, OSError):
            yield cause.errno or 0, cause.filename
        elif named:
            yield int(named[1]), None
        cause = cause.__cause__ or cause.__context__


def first_few(names: Sequence[object], shown: int = 3) -> str:
    """The first names, separated by commas, and the number of others: "a, b, c and 2 more"."""
    return ", ".join(map(str, names[:shown])) + (f" and {len(names) - shown:,} more" if len(names) > shown else "")


def counted(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun, and perhaps a verb: "1 shard is", "2 shards are"; the default plural adds an s."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def tally(counts: Mapping[str, int]) -> str:
    """Counts by name: "confidence 3, area 12"."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as 5:12:07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def command(*words: str) -> str:
    """A `factory` command in backquotes, which can be pasted into a shell: a folder's name may contain spaces."""
    return f"`{shlex.join(['factory', *words])}`"


def printable(text: str) -> str:
    """The text with escapes in place of control characters: names in files of others may control a terminal."""
    return _CONTROLS.sub(lambda match: repr(match[0])[1:-1], text)


def one_line(error: BaseException, length: int = 200) -> str:
    """An error's message in one line, shortened to `length` characters; the name of its class if it has none."""
    return shortened(" ".join(str(error).split()), length) or type(error).__name__


def shortened(text: str, length: int) -> str:
    """The text, or its first sentences if it is longer than `length`, or else its first words and an ellipsis."""
    if len(text) <= length:
        return text
    sentences = text[: length + 1].rpartition(". ")[0]
    if len(sentences) > min(length // 3, 40):
        return f"{sentences}."
    start = text[: length - 3]
    return f"{start.rpartition(' ')[0] or start}..."
