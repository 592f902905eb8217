"""Turns errors of storage clients into messages for users."""

import contextlib
import errno
import re
from collections.abc import Callable, Iterator

from factory.dataset.storage_retry import (
    first_line,
    has_expired_credentials,
    has_no_credentials,
    is_full,
    names_no_bucket,
)
from factory.errors import DAMAGED, TransientError, UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = {
    (errno.EEXIST, errno.ENOTDIR): "a part of this path is a file, not a folder",
    (errno.EACCES, errno.EPERM): "permission denied",
    (errno.EROFS,): "the file system is read-only",
}
"""Why no file can be created in a folder, by error number."""


class StoreFullError(TransientError):
    """The disk or bucket is full; committed data is kept."""


class UnreadableError(UserError):
    """The disk returns an error for a file that exists."""


@contextlib.contextmanager
def clear_errors(
    where: str, is_bucket: bool, writes: bool, hide: Callable[[str], str], proven: bool = False
) -> Iterator[None]:
    """Turn storage errors into a UserError with a clear message; FileNotFoundError of a read passes.

    `where` names the file, `hide` removes credentials from a text, and `proven` is whether the store has responded
    before: credentials that expire later are not bad input.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    try:
        yield
    except (AlreadyExistsError, PreconditionError, UserError):
        raise
    except (BaseError, OSError, ValueError) as error:
        if is_bucket and (names_no_bucket(error) or (writes and isinstance(error, FileNotFoundError))):
            verb = "write" if writes else "read"
            raise UserError(f"cannot {verb} {where}: the bucket does not exist; create it or give another.") from None
        if isinstance(error, FileNotFoundError) and not writes:
            raise
        message = re.sub(r"#\d+'", "'", hide(first_line(error)))  # without the end of a temporary name
        if _has_code(error, message, _FULL) or (is_bucket and is_full(error)):
            raise StoreFullError(
                f"no space left for {where}; committed shards are kept. Free some space and rerun the same "
                f"command to resume."
            ) from None
        if is_bucket and has_expired_credentials(error, proven):
            text = f"cannot use {where}: the credentials have expired or were revoked ({message})"
            if proven:
                raise TransientError(
                    f"{text}; committed shards are kept. Renew the credentials and rerun the same command to resume."
                ) from None
            raise UserError(f"{text}. Renew them and rerun the same command.") from None
        if not is_bucket and _has_code(error, message, DAMAGED):
            raise UnreadableError(
                f"cannot use {where}: {message}. Check the disk; if only some files of a dataset are damaged, `factory "
                f"verify --repair` generates them again."
            ) from error
        if not is_bucket and writes:  # name the folder, not the file that is written first
            for codes, problem in _UNWRITABLE.items():
                if _has_code(error, message, codes):
                    where, message = where.rpartition("/")[0], problem
        advice = "Give a folder or bucket that can be read and written."
        if is_bucket and has_no_credentials(error):
            message = f"no valid credentials were found ({message})"
            advice = "Set them as docs/storage.md describes."
        if "status code: 501" in message:
            advice = "Give a service that supports conditional writes (If-None-Match, docs/storage.md)."
        text = f"cannot use {where}: {message}. {advice}"
        # A bucket's error may contain headers and URLs with secrets: keep its text out of tracebacks.
        raise UserError(text) from (None if is_bucket else error)


def _has_code(error: Exception, message: str, codes: tuple[int, ...]) -> bool:
    """Whether an error has one of these numbers, in the client's text or as an errno."""
    return any(f"os error {code})" in message for code in codes) or getattr(error, "errno", 0) in codes


def ignores_conditions(address: str, name: str) -> UserError:
    """The error for a service that creates a file although it exists."""
    return UserError(
        f"{address} does not honour conditional writes: it created {name} twice, so two runs could overwrite each "
        f"other's files. Give a store that supports If-None-Match (docs/storage.md)."
    )


def never_created(address: str, name: str) -> UserError:
    """The error for a file that cannot be created because it exists, and cannot be read because it does not."""
    return UserError(
        f"{address.rstrip('/')}/{name} can neither be created nor read: it is a link to a missing file, or another "
        f"program creates and deletes it; delete it and rerun the same command."
    )
