"""Writes the report of a dataset: report.json with all numbers, and index.html, which shows them."""

import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from factory.config.sections import StoreRecipe
from factory.dataset.storage import Store
from factory.errors import TransientError, UserError
from factory.files.decode import decode_json
from factory.files.strict_json import dumps
from factory.report.drift import drift
from factory.report.features import IMAGES
from factory.report.measure import FORMAT, Watch, measure
from factory.report.page import write_page
from factory.report.verdict import verdict

PAGE, DATA = "index.html", "report.json"


def write_report(
    dataset: str | Store,
    out: str | Store,
    previous: Sequence[str] = (),
    compare: str | None = None,
    watch: Watch = lambda samples: None,
    features: int = IMAGES,
    name: str | None = None,
) -> dict[str, Any]:
    """Measure a dataset, write `index.html` and `report.json` to the folder or URL `out`, and return the report.

    `previous` are paths or URLs of earlier report.json files, oldest first; drift is measured against them. They are
    read with the storage settings of `out`; those that cannot be read are listed in the report and ignored. `compare`
    is another dataset, or the report.json of one. `watch` is called with the number of samples measured so far;
    `features` is the approximate number of images whose features are computed. `name` replaces the name of the dataset,
    which is the end of its address.

    Raises UserError if there is no dataset, if `compare` cannot be read, or if `out` holds an index.html that is not a
    report.
    """
    source = dataset if isinstance(dataset, Store) else Store(dataset)
    target = out if isinstance(out, Store) else Store(out)
    _refuse_foreign(target)
    other = None if compare is None else _compared(compare, features)
    earlier, ignored = _previous(previous, target.settings)
    measured = measure(source, watch, features)
    report = measured.data
    if name is not None:
        report["dataset"]["name"] = name
    report["drift"] = drift(report, earlier, other) | {"ignored": ignored}
    report["verdict"] = verdict(report, earlier[-1] if earlier else None)
    report = json.loads(dumps(report))  # the page is made from exactly what report.json contains
    page = write_page(report, measured.thumbnails)
    target.put(DATA, (dumps(report, indent=1) + "\n").encode())
    target.put(PAGE, page.encode())
    return dict(report)


def read_report(path: str, settings: StoreRecipe | None = None) -> dict[str, Any]:
    """Read a report.json from a path or URL; raises UserError if it is missing, invalid, or of another version."""
    folder, name = _split(path)
    data = Store(folder, settings).get(name)
    if data is None:
        raise UserError(f"there is no report {path}; give the path of a report.json that `factory report` has written.")
    try:
        report = decode_json(data)
        version = report["format"]
        known = isinstance(report["dataset"]["name"], str) and isinstance(report["dataset"]["settings"], dict)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a report ({type(error).__name__}); give another report.json.") from error
    if version != FORMAT or not known:
        raise UserError(f"{path} has the format {version!r}; this version compares reports of format {FORMAT}.")
    return dict(report)


def _split(path: str) -> tuple[str, str]:
    """(folder or URL, file name)."""
    folder, slash, name = path.rpartition("/")
    return (folder or slash or "."), name


def _previous(paths: Sequence[str], settings: StoreRecipe) -> tuple[list[dict[str, Any]], list[str]]:
    """The readable reports, and a message for each of the others."""
    reports, ignored = [], []
    for path in paths:
        try:
            reports.append(read_report(path, settings))
        except TransientError:
            raise
        except UserError as error:
            ignored.append(str(error))
    return reports, ignored


def _compared(address: str, features: int) -> dict[str, Any]:
    """The report of another dataset, measured without thumbnails unless it is a report.json."""
    if PurePosixPath(address).suffix == ".json":
        return read_report(address)
    return measure(Store(address), features=features, audit=False).data


def _refuse_foreign(target: Store) -> None:
    """Raise UserError if `out` contains a page that this command did not write."""
    if target.get(PAGE) is not None and target.get(DATA) is None:
        raise UserError(
            f"{target.address} contains an {PAGE} but no {DATA}, so it is not a report; give another folder with --out."
        )
