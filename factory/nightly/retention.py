"""Deletes old nights, but never the newest successful one or a folder that is not a night."""

import datetime
import shutil
from collections.abc import Mapping

from factory.dataset.lease import stale
from factory.dataset.storage import Store
from factory.dataset.storage_errors import clear_errors
from factory.nightly.latest import latest_night
from factory.nightly.record import NIGHT, Night, list_nights


def expired_nights(root: Store, keep: int, current: Night | None = None) -> list[datetime.date]:
    """The dates of the nights to delete, in order: all but the newest `keep` and those that must stay.

    A folder without a valid record is not a night. The last successful and the last complete night are kept. A night
    that a driver is working on is kept, and so is that of latest.json, whose dataset is in use even if the night failed
    when it was continued. `current` is the night that has just ended or, in a dry run, would end; it is kept regardless
    of its date.
    """
    by_date = list_nights(root)
    nights = {date: night for date, night in by_date.items() if night is not None}
    if current is not None:
        nights[current.date] = current
    kept = set(sorted(nights)[-keep:])
    for protected in (_last(nights, ("complete", "partial")), _last(nights, ("complete",))):
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
    return has_own_dataset and stale(Store(f"{root.address.rstrip('/')}/{night.dataset}", root.settings)) is False


def delete_night(root: Store, date: datetime.date) -> None:
    """Delete the folder of a night. Its record goes last, so that an interrupted deletion is repeated.

    Links in a local folder are removed, not followed.
    """
    folder = date.isoformat()
    record = f"{folder}/{NIGHT}"
    if root.folder is None:
        root.delete_all(name for name in root.list(folder) if name != record)
        root.delete(record)
        return
    path = root.folder / folder
    with clear_errors(str(path), is_bucket=False, writes=True, hide=str):
        for child in path.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            elif child.name != NIGHT:
                child.unlink()
        shutil.rmtree(path)
