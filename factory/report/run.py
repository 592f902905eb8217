"""Writes the report of a dataset: report.json with all numbers, and index.html, which shows them."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from factory.dataset.storage import Store
from factory.dataset.stored_recipe import RECIPE, recipe_of
from factory.errors import UserError
from factory.files.strict_json import dumps
from factory.report.drift import drift
from factory.report.earlier import read_report, readable_reports
from factory.report.features import IMAGES
from factory.report.measure import Watch, measure
from factory.report.page import write_page
from factory.report.verdict import verdict

PAGE, DATA = "index.html", "report.json"
_PROBE = ".report-is-writable"


def write_report(
    dataset: str | Store,
    out: str | Store,
    previous: Sequence[tuple[Store, str]] = (),
    compare: str | None = None,
    watch: Watch = lambda samples: None,
    features: int = IMAGES,
    name: str | None = None,
) -> dict[str, Any]:
    """Measure a dataset, write `index.html` and `report.json` to the folder or URL `out`, and return the report.

    `previous` are earlier report.json files as (store, name), oldest first; drift is measured against them. Those that
    cannot be read are listed in the report and ignored. `compare` is another dataset, or a report of one. `watch` is
    called with the number of samples measured so far; `features` is the approximate number of images whose features are
    computed. `name` replaces the name of the dataset, which is the end of its address.

    Raises UserError if there is no dataset, if `compare` cannot be read, or if `out` holds an index.html that is not a
    report.
    """
    source = dataset if isinstance(dataset, Store) else Store(dataset)
    target = out if isinstance(out, Store) else Store(out)
    other = None if compare is None else _found(compare)
    _check_target(source, target)
    if isinstance(other, Store):
        other = measure(other, features=features, audit=False).data  # without thumbnails
    earlier, ignored = readable_reports(previous)
    measured = measure(source, watch, features)
    report = measured.data
    if name is not None:
        report["dataset"]["name"] = name
    report["drift"] = drift(report, earlier, other) | {"ignored": ignored}
    report["verdict"] = verdict(report, earlier[-1] if earlier else None)
    report = json.loads(dumps(report))  # the page is computed from the content of report.json
    page = write_page(report, measured.thumbnails)
    target.put(DATA, (dumps(report, indent=1) + "\n").encode())
    target.put(PAGE, page.encode())
    return dict(report)


def _found(address: str) -> dict[str, Any] | Store:
    """The report at an address (a report.json or its folder), or else the dataset. UserError if there is neither."""
    if PurePosixPath(address).suffix == ".json":
        folder, slash, name = address.rpartition("/")
        return read_report(Store(folder or slash or "."), name)
    store = Store(address)
    if store.get(RECIPE) is None and store.get(DATA) is not None:
        return read_report(store, DATA)
    recipe_of(store)
    return store


def _check_target(source: Store, target: Store) -> None:
    """Raise UserError if `out` cannot be written, is in the dataset, or has a page that this command did not write."""
    dataset, out = (
        store.address.rstrip("/") if store.folder is None else os.path.realpath(store.folder)
        for store in (source, target)
    )
    if f"{out}/".startswith(f"{dataset}/"):
        raise UserError(f"--out {target.address} is inside the dataset {source.address}; give a folder outside of it.")
    if target.get(PAGE) is not None and target.get(DATA) is None:
        raise UserError(
            f"{target.address} contains an {PAGE} but no {DATA}, so it is not a report; give another folder with --out."
        )
    target.put(_PROBE, b"")
    with suppress(UserError):  # some buckets allow no deletion
        target.delete(_PROBE)
