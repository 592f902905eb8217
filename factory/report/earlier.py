"""Reads the report.json of earlier reports, which may come from other versions and untrusted sources."""

from collections.abc import Iterable
from typing import Any

from factory.dataset.storage import Store
from factory.errors import TransientError, UserError
from factory.files.decode import decode_json
from factory.report.measure import FORMAT


def read_report(store: Store, name: str) -> dict[str, Any]:
    """Read a report.json; raises UserError if it is missing, invalid, or of another version."""
    path, data = store.address_of(name), store.get(name)
    if data is None:
        raise UserError(f"there is no report {path}; give the path of a report.json that `factory report` has written.")
    try:
        report = decode_json(data)
        version = report["format"]
        if version == FORMAT:
            _check(report)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a report ({type(error).__name__}); give another report.json.") from error
    if version != FORMAT:
        raise UserError(f"{path} has the format {version!r}; this version compares reports of format {FORMAT}.")
    return dict(report)


def _check(report: Any) -> None:
    """Raise ValueError or TypeError unless the parts of an earlier report that the page shows have the right types.

    `factory.report.drift` checks what it computes distances from.
    """
    name, settings, attempts = report["dataset"]["name"], report["dataset"]["settings"], report["funnel"]["yield"]
    if not isinstance(name, str) or not isinstance(settings, dict) or not isinstance(report["created"], str):
        raise TypeError("the name, the settings or the time has another type")
    numbers = (
        report["dataset"]["samples"],
        report["agreement"]["confidence"].get("mean"),
        report["time"].get("samples_per_second"),
    )
    for value in (attempts["count"], attempts["of"], attempts["share"], *numbers):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0):
            raise TypeError(f"{str(value)[:40]} is not a number of at least 0")
    if attempts["share"] is not None and not 0 < attempts["of"] >= attempts["count"]:
        raise ValueError(f"a yield of {attempts['count']} in {attempts['of']} attempts is impossible")


def readable_reports(files: Iterable[tuple[Store, str]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The reports that can be read, and a message for each of the others. A store that does not respond is an error."""
    reports, ignored = [], []
    for store, name in files:
        try:
            reports.append(read_report(store, name))
        except TransientError:
            raise
        except UserError as error:
            ignored.append(str(error))
    return reports, ignored
