"""latest.json: the record of the newest night whose dataset can be used."""

import datetime
from collections.abc import Iterable, Mapping

from factory.dataset.storage import Store
from factory.dataset.stored_recipe import RECIPE
from factory.errors import UserError
from factory.nightly.record import Night, list_nights, parse_night

LATEST = "latest.json"


def latest_night(root: Store) -> Night | None:
    """The night of latest.json; None if there is none or the file is invalid."""
    return _parsed(root.get(LATEST))


def update_latest(root: Store, night: Night) -> None:
    """Make latest.json the record of the newest usable night; `night` is the record that has just been written.

    A night is usable if it succeeded, its dataset exists, and the last verification of this dataset found no damage. A
    night that is continued stays usable with the record of its last success, even if it is interrupted or fails,
    because verified shards do not change. Without a usable night, latest.json is deleted.
    """
    while True:
        data = root.get(LATEST)
        usable = _newest_usable(root, {**list_nights(root), night.date: night}, _parsed(data))
        if data == (None if usable is None else usable.to_json()):
            return
        if usable is None:
            root.delete(LATEST)  # read once more, because another night may have written it in the meantime
        elif root.compare_and_swap(LATEST, usable.to_json(), data):
            return


def _newest_usable(root: Store, nights: Mapping[datetime.date, Night | None], latest: Night | None) -> Night | None:
    """The newest usable night; `latest` is the record in latest.json."""
    good = {date: night for date, night in nights.items() if night is not None and night.good}
    if latest is not None and latest.date in nights:
        good.setdefault(latest.date, latest)
    damaged = _damaged_datasets(night for night in nights.values() if night is not None)
    for date in sorted(good, reverse=True):
        night = good[date]
        if night.dataset not in damaged and root.get(f"{night.dataset}/{RECIPE}") is not None:
            return night
    return None


def _damaged_datasets(nights: Iterable[Night]) -> set[str]:
    """The datasets whose last verification found damage; in mode `grow`, several nights verify the same dataset."""
    results = [(night.verified, night.dataset) for night in nights if night.verified is not None]
    last = {dataset: result for result, dataset in sorted(results, key=lambda item: item[0].at.timestamp())}
    return {dataset for dataset, result in last.items() if result.damaged}


def _parsed(data: bytes | None) -> Night | None:
    try:
        return None if data is None else parse_night(data, LATEST)
    except UserError:
        return None
