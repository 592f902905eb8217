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
_ADVICE = "Give a folder or bucket that can be read and written."


class StoreFullError(TransientError):
    """The disk or bucket is full; committed data is kept."""


class UnreadableError(UserError):
    """The disk returns an error for a file that exists."""


@contextlib.contextmanager
def translated_errors(
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
        if isinstance(error, FileNotFoundError) and not writes and not (is_bucket and names_no_bucket(error)):
            raise
        message = re.sub(r"#\d+'", "'", hide(first_line(error)))  # without the end of a temporary name
        if is_bucket:
            # The error may contain headers and URLs with secrets: keep its text out of tracebacks.
            raise _bucket_error(error, message, where, writes, proven) from None
        raise _folder_error(error, message, where, writes) from error


def _bucket_error(error: Exception, message: str, where: str, writes: bool, proven: bool) -> UserError:
    """The error for a request to a bucket; the client's FileNotFoundError means that there is no bucket."""
    if names_no_bucket(error) or isinstance(error, FileNotFoundError):
        verb = "write" if writes else "read"
        return UserError(f"cannot {verb} {where}: the bucket does not exist; create it or give another.")
    if _has_code(error, message, _FULL) or is_full(error):
        return _full(where)
    if has_expired_credentials(error, proven):
        text = f"cannot use {where}: the credentials have expired or were revoked ({message})"
        if proven:
            return TransientError(
                f"{text}; committed shards are kept. Renew the credentials and rerun the same command to resume."
            )
        return UserError(f"{text}. Renew them and rerun the same command.")
    advice = _ADVICE
    if has_no_credentials(error):
        message = f"no valid credentials were found ({message})"
        advice = "Set them as docs/storage.md describes."
    if "status code: 501" in message:
        advice = "Give a service that supports conditional writes (If-None-Match, docs/storage.md)."
    return UserError(f"cannot use {where}: {message}. {advice}")


def _folder_error(error: Exception, message: str, where: str, writes: bool) -> UserError:
    if _has_code(error, message, _FULL):
        return _full(where)
    if _has_code(error, message, DAMAGED):
        return UnreadableError(
            f"cannot use {where}: {message}. Check the disk; if only some files of a dataset are damaged, `factory "
            f"verify --repair` generates them again."
        )
    problem = next((text for codes, text in _UNWRITABLE.items() if _has_code(error, message, codes)), None)
    if writes and problem is not None:  # name the folder, not the file that is written first
        where, message = where.rpartition("/")[0], problem
    return UserError(f"cannot use {where}: {message}. {_ADVICE}")


def _full(where: str) -> StoreFullError:
    return StoreFullError(
        f"no space left for {where}; committed shards are kept. Free some space and rerun the same command to resume."
    )


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
