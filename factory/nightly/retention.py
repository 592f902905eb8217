"""Deletes old nights, but never the newest successful one or a folder that is not a night."""

import datetime
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from factory.dataset.continuation import NIGHT
from factory.dataset.lease import LEASE, is_stale, leased
from factory.dataset.storage import Store
from factory.dataset.storage_errors import translated_errors
from factory.dataset.storage_folder import LOCK
from factory.dataset.stored_recipe import RECIPE
from factory.nightly.latest import latest_night
from factory.nightly.record import DATASET, GOOD, Night, readable_nights


def expired_nights(root: Store, keep: int, current: Night | None = None) -> list[datetime.date]:
    """The dates of the nights to delete, in order: all but the newest `keep` and those that must stay.

    A folder without a valid record is not a night. The last successful and the last complete night are kept. A night
    that a driver is working on is kept, and so is that of latest.json, whose dataset is in use even if the night failed
    when it was continued. `current` is the night that has just ended or, in a dry run, would end; it is kept regardless
    of its date.
    """
    nights = readable_nights(root)
    if current is not None:
        nights[current.date] = current
    kept = set(sorted(nights)[-keep:])
    for protected in (_last(nights, GOOD), _last(nights, ("complete",))):
        kept |= {protected} if protected is not None else set()
    latest = latest_night(root)
    if current is not None and current.good and (latest is None or latest.date <= current.date):
        latest = current  # in a dry run, the night is not in latest.json yet
    kept |= {night.date for night in (latest, current) if night is not None}
    return [date for date in sorted(nights) if date not in kept and not _is_untouchable(root, nights[date])]


def _last(nights: Mapping[datetime.date, Night], states: tuple[str, ...]) -> datetime.date | None:
    return max((date for date, night in nights.items() if night.state in states), default=None)


def _is_untouchable(root: Store, night: Night) -> bool:
    """Whether a driver holds the lease of the night's own dataset, or the folder is a link to another place."""
    if root.folder is not None and (root.folder / night.name).is_symlink():
        return True
    has_own_dataset = night.dataset.startswith(f"{night.name}/")
    return has_own_dataset and is_stale(root.below(night.dataset)) is False


def delete_night(root: Store, date: datetime.date) -> None:
    """Delete the folder of a night, under the lease of its dataset; raises LeaseHeldError if a driver works on it.

    The recipe of the dataset goes first, so that nobody takes the rest for a dataset, and the record last, so that an
    interrupted deletion is repeated. Links in a local folder are removed, not followed.
    """
    folder = date.isoformat()
    with _lease(root, folder) as confirm:
        if root.folder is None:
            _delete_from_bucket(root, folder, confirm)
        else:
            path = root.folder / folder
            with _translated_errors(path):
                _delete_files(path, confirm)
    if root.folder is not None:
        with _translated_errors(path), suppress(FileNotFoundError):
            if not (path / DATASET / LEASE).exists():  # otherwise, another driver has restarted the night
                shutil.rmtree(path)


@contextmanager
def _lease(root: Store, folder: str) -> Iterator[Callable[[], None]]:
    """Hold the lease of the night's own dataset, if there is one; yields a function that confirms it."""
    dataset = f"{folder}/{DATASET}"
    is_link = root.folder is not None and (root.folder / dataset).is_symlink()
    if is_link or not root.entries(dataset, limit=1):
        yield lambda: None
        return
    with leased(root.below(dataset)) as held:
        yield held.confirm


def _delete_from_bucket(root: Store, folder: str, confirm: Callable[[], None]) -> None:
    record, lease = f"{folder}/{NIGHT}", f"{folder}/{DATASET}/{LEASE}"
    names = root.list(folder).keys() - {record, lease}
    confirm()
    root.delete(f"{folder}/{DATASET}/{RECIPE}")
    confirm()
    root.delete_all(names)
    confirm()
    root.delete(record)


def _delete_files(path: Path, confirm: Callable[[], None]) -> None:
    """Delete everything in the folder of a night but the lease and its lock file."""
    dataset = path / DATASET
    confirm()
    if dataset.is_dir() and not dataset.is_symlink():
        (dataset / RECIPE).unlink(missing_ok=True)
        for child in list(dataset.iterdir()):
            if child.name != LEASE and not child.name.startswith(LOCK):
                confirm()
                _remove(child)
    for child in list(path.iterdir()):
        if child.name != NIGHT and (child != dataset or child.is_symlink()):
            confirm()
            _remove(child)
    confirm()
    (path / NIGHT).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _translated_errors(path: Path) -> AbstractContextManager[None]:
    return translated_errors(str(path), is_bucket=False, writes=True, hide=str)
