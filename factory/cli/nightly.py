"""`factory nightly`: one dataset per night, and the list of all nights for `factory status`."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory import log_format
from factory.cli.messages import to_stderr, to_stdout
from factory.cli.shared_options import Force
from factory.errors import counted, duration
from factory.files.strict_json import dumps

if TYPE_CHECKING:
    from factory.dataset.storage import Store
    from factory.nightly.record import Night

_log = logging.getLogger("factory.nightly")


def nightly(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Configuration file; see docs/nightly.md.")],
    date: Annotated[
        str | None,
        typer.Option(
            help="Date of the night, such as 2026-11-25, or a timestamp with an offset; by default that of the last "
            "scheduled start."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything and show what would be generated and deleted; write nothing."),
    ] = False,
    force: Force = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print only the line of JSON, without progress and messages.")
    ] = False,
) -> None:
    """Generate the dataset of a night within a budget, then verify, export and report it.

    Finally, old nights are deleted and notifications are sent. If the night is already complete, nothing is done. After
    an interruption, or after the budget is used up, rerun the same command to continue. Messages and progress go to
    standard error. Standard output is the result as one line of JSON.

    Example: factory nightly nightly.yaml

    Example: factory nightly nightly.yaml --date 2026-11-25 --dry-run

    Exit codes: 0 complete, or the budget is used up; 2 invalid input; 3 some shards failed repeatedly or no sample was
    accepted; 4 complete, but some samples were rejected in every attempt; 5 damaged; 6 another driver is working on
    this night; 75 temporary failure; 130 or 143 interrupted. See docs/exit-codes.md.
    """
    from factory.cli.view import watching
    from factory.nightly.budget import now
    from factory.nightly.clock import parse_date, scheduled_date, zone_of
    from factory.nightly.config import load_config
    from factory.nightly.context import make_context
    from factory.nightly.run import preview_night, run_night

    loaded = load_config(config)
    zone = zone_of(loaded.timezone)
    night = parse_date(date, zone, now()) if date is not None else scheduled_date(now(), loaded.starts, zone)

    def log(text: str) -> None:
        if log_format.wants_json():
            _log.info("%s", text, extra={"fields": {"night": night.isoformat()}})
        elif not as_json:
            to_stderr(text)

    if dry_run:
        data = preview_night(make_context(loaded, night, log))
        log(_preview_text(data, force))
        to_stdout(dumps(data))
        return
    with watching(quiet=as_json) as watch:
        outcome = run_night(make_context(loaded, night, log, watch), force)
    log(outcome.to_text())
    to_stdout(dumps(outcome.to_data()))
    if outcome.unexpected is not None:
        raise outcome.unexpected
    raise typer.Exit(outcome.exit_code)


def _preview_text(data: dict[str, Any], force: bool = False) -> str:
    if data["action"] == "nothing":
        return f"Nothing is left to do for the night of {data['date']}; a run would change nothing."
    lines = [
        f"The night of {data['date']} would {data['action']} {data['dataset']} (seed {data['seed']}): "
        f"{data['samples']} of {counted(data['n'], 'sample')} exist."
    ]
    if data["until"]:
        lines.append(f"Its generation would end at {data['until']}.")
    if data["held"]:
        effect = "with --force, a run would take it over" if force else "until it ends, a run would exit with code 6"
        lines.append(f"Another driver is working on this dataset now: {effect}.")
    lines.append(f"Nights to delete: {', '.join(data['would_delete']) or 'none'}.")
    return "\n".join(lines)


def nights_of(root: "Store") -> list[dict[str, Any]]:
    """The nights of a root by date as JSON data; empty if there are none.

    A running night whose driver is gone is "stale", or "interrupted" if another driver works on its dataset. A night
    whose record cannot be read is "unreadable".
    """
    from factory.nightly.record import list_nights

    nights = list_nights(root)
    running = [night for night in nights.values() if night is not None and night.state == "running"]
    # One driver at a time works on a dataset; of several nights, it is the last one that wrote its record.
    newest = {night.dataset: night.date for night in sorted(running, key=lambda night: night.updated.timestamp())}
    states = {night.date: _state_of(root, night, night.date == newest[night.dataset]) for night in running}
    return [
        {"date": date.isoformat(), "state": "unreadable"}
        if night is None
        else {**night.to_data(), "state": states.get(date, night.state)}
        for date, night in nights.items()
    ]


def _state_of(root: "Store", night: "Night", is_newest: bool) -> str:
    """The state of a night whose record says that it is running, by the lease of its dataset."""
    from factory.dataset.lease import is_stale, read_lease

    dataset = root.below(night.dataset)
    if is_stale(dataset) is not False:
        return "stale"
    lease = read_lease(dataset)
    is_shared = not night.dataset.startswith(f"{night.name}/")
    if is_shared and (not is_newest or (lease is not None and lease.started_after(night.updated))):
        return "interrupted"
    return "running"


def nights_table(nights: list[dict[str, Any]]) -> str:
    """The nights as aligned columns."""
    rows = [("date", "state", "samples", "new", "yield", "time", "GPU-hours", "cost")]
    for night in nights:
        if night["state"] == "unreadable":
            rows.append((night["date"], "unreadable", *[""] * 6))
            continue
        share, cost = night["yield"], night["cost"]
        rows.append(
            (
                night["date"],
                night["state"],
                str(night["samples"]),
                str(night["new_samples"]),
                "" if share is None else f"{share:.1%}",
                duration(sum(night["seconds"].values())),
                f"{night['gpu_hours']:.2f}",
                "" if cost is None else f"{cost:.2f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
