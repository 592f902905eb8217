"""`factory report`: the report of a dataset as a page and as JSON."""

from typing import Annotated

import typer

from factory.cli.messages import to_stdout
from factory.cli.shared_options import AsJson, Dataset
from factory.files.strict_json import dumps


def report(
    dataset: Dataset,
    compare: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="Dataset to compare with, or a report of one; a folder or URL."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Folder or URL to write to; by default DATASET-report, next to a dataset in a folder. For one in a "
            "bucket, it is in the working directory and named after the whole URL."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a report of a dataset: a page (index.html), and every number on it (report.json).

    It shows the yield of each filter, classes, objects, image quality, near-duplicates, agreement with the detector,
    time and errors, random, worst and rejected images, and with --compare the difference from another dataset.

    Example: factory report out/

    Example: factory report out/ --compare s3://bucket/yesterday --out report
    """
    from factory.cli.progress import progress_bar
    from factory.config.plan import Plan
    from factory.dataset.default_target import default_target
    from factory.dataset.storage import Store
    from factory.dataset.stored_recipe import recipe_of
    from factory.dataset.totals import current_totals
    from factory.report.run import PAGE, write_report

    source = Store(dataset)
    target = Store(str(default_target(dataset, "report")) if out is None else out)
    existing = current_totals(source, Plan(recipe_of(source))).accepted
    with progress_bar("measuring samples", existing, as_json) as show:
        data = write_report(source, target, compare=compare, watch=show)
    page = target.address_of(PAGE)
    if as_json:
        to_stdout(dumps({"page": page, **data["verdict"]}))
        return
    to_stdout(data["verdict"]["sentence"])
    to_stdout(page)
