"""The report of a night, compared with earlier successful nights."""

from factory.nightly.context import NightContext
from factory.nightly.record import REPORT, Night, Reported, list_nights
from factory.report.drift import LEARNING_NIGHTS
from factory.report.run import DATA, write_report


def report_night(context: NightContext, night: Night) -> Reported:
    """Write `report/` of the night; drift is measured against the last successful nights that have a report."""
    folder = f"{context.folder}/{REPORT}"
    target = context.root.below(folder)
    context.log(f"writing {target.address}")
    report = write_report(context.dataset, target, _earlier_reports(context), name=context.folder)
    verdict = report["verdict"]
    return Reported(path=folder, shards=night.shards, level=verdict["level"], sentence=verdict["sentence"])


def _earlier_reports(context: NightContext) -> list[str]:
    """Addresses of report.json of the successful nights before this one, oldest first."""
    nights = [night for date, night in sorted(list_nights(context.root).items()) if date < context.date and night]
    paths = [night.report.path for night in nights if night.good and night.report is not None]
    return [f"{context.root.address_of(path)}/{DATA}" for path in paths[-LEARNING_NIGHTS:]]
