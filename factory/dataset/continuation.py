"""The command that continues an unfinished dataset: that of its nightly job, if it has one."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from factory.dataset.storage import Store
from factory.dataset.storage_errors import UnreadableError
from factory.errors import TransientError, UserError, command
from factory.files.decode import decode_json

NIGHT = "night.json"
"""The record of a night, beside its dataset or above it."""
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_NIGHTS = 10
"""The last nights of a root that are looked at: the folder of a night that has just started has no record yet."""
_PATIENCE = 10.0


def continuing_command(store: Store) -> str:
    """`factory nightly` for a dataset of a night or of all nights, otherwise `factory generate`.

    `generate` would continue a dataset of a night as well, but regardless of the budget, and without its record.
    """
    night = None
    with suppress(UserError):  # the error for which this command is needed is of more use
        night = night_options(store, _PATIENCE)
    if night is None:
        return command("generate", "--shards", store.address)
    return f"{command('nightly', 'CONFIG', *night)} (the configuration of its nightly job)"


def without_samples(store: Store, has_shards: bool) -> UserError:
    """The error for a dataset without samples: it has no finished shard yet, or all attempts in them were rejected."""
    if not has_shards:
        return UserError(f"{store.address} has no samples yet; generate some with {continuing_command(store)}.")
    return UserError(
        f"{store.address} has no samples: every attempt in its finished shards was rejected; "
        f"{command('report', store.address)} shows by which filters."
    )


def night_options(store: Store, patience: float | None = None) -> list[str] | None:
    """The options of `factory nightly` that select the night of a dataset whose job has samples left to generate.

    None for other datasets. Raises UserError if the record of a night exists and cannot be read at the moment: the
    dataset must not be taken for another one.
    """
    try:
        return _night_options(store, patience)
    except (TransientError, UnreadableError):
        raise
    except (UserError, ValueError, TypeError):  # such as no permission to read above the dataset
        return None


def _night_options(store: Store, patience: float | None) -> list[str] | None:
    # Links are not followed: the dataset of a night may be one, to another disk.
    address = os.path.normpath(store.folder) if store.folder is not None else store.address.rstrip("/")
    above, _, name = address.rpartition("/")
    parent = Store(above, store.settings)
    if patience is not None:
        parent = parent.with_patience(patience)
    date = above.rpartition("/")[2]
    night = _record_in(parent, NIGHT) if _DATE.fullmatch(date) else None
    if night is not None and night.get("dataset") == f"{date}/{name}":
        return ["--date", date] if _has_work(night) else None
    nights = [folder for folder in reversed(parent.folders()) if _DATE.fullmatch(folder)]
    records = (_record_in(parent, f"{night}/{NIGHT}") for night in nights[:_NIGHTS])
    last = next((record for record in records if record is not None), None)
    return [] if last is not None and last.get("dataset") == name and _has_work(last) else None


def _record_in(root: Store, name: str) -> dict[str, Any] | None:
    data = root.get(name)
    return None if data is None else dict(decode_json(data))


def _has_work(night: Mapping[str, Any]) -> bool:
    """Whether the nightly job would generate samples: it changes nothing once a complete night has made the last ones.

    The shards that such a dataset lacks were deleted later, by a repair that was interrupted for example.
    """
    return night.get("state") != "complete" or night.get("planned", 0) < night.get("n")
