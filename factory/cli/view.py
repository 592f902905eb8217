"""Displays a run: a live view on a terminal, plain lines elsewhere, log records on request, nothing with --json."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from factory import log_format
from factory.cli.messages import print_line
from factory.cli.progress import is_live
from factory.errors import counted, duration, printable, tally
from factory.generation.progress import ERRORS_SHOWN, Snapshot
from factory.signals import leave_closed_terminal

if TYPE_CHECKING:
    from factory.generation.reporter import Watch

_LINE_INTERVAL = 10.0
_ACTIVE = ("starting", "running", "waiting")
_log = logging.getLogger("factory.progress")


@contextmanager
def watching(quiet: bool) -> Iterator["Watch"]:
    """Yield a function that displays snapshots, on standard error, so that results can be piped."""
    if log_format.wants_json():
        yield _Records().show
    elif quiet:
        yield lambda snapshot: None
    elif is_live():
        checking = Text("checking the recipe and its models")
        with Live(checking, console=Console(stderr=True), refresh_per_second=4, transient=True) as live:

            def show(snapshot: Snapshot) -> None:
                leave_closed_terminal()
                live.update(_table(snapshot))

            yield show
    else:
        yield _Lines().show


class _Lines:
    """Prints the progress every ten seconds, and every new error immediately."""

    def __init__(self) -> None:
        self._last, self._errors = 0.0, 0

    def show(self, snapshot: Snapshot) -> None:
        new, self._errors = snapshot.errors_total - self._errors, snapshot.errors_total
        for error in snapshot.errors[-new:] if new else ():
            self.print_error(error)
        if time.monotonic() - self._last > _LINE_INTERVAL or snapshot.status not in _ACTIVE:
            self._last = time.monotonic()
            self.print_progress(snapshot)

    def print_error(self, error: str) -> None:
        print_line(f"  {printable(error)}")

    def print_progress(self, snapshot: Snapshot) -> None:
        print_line(one_line(snapshot))


class _Records(_Lines):
    """As `_Lines`, as log records with the fields of progress.json."""

    def print_error(self, error: str) -> None:
        _log.warning("%s", error)

    def print_progress(self, snapshot: Snapshot) -> None:
        _log.info("%s", one_line(snapshot), extra={"fields": {"progress": snapshot.to_dict()}})


def one_line(snapshot: Snapshot) -> str:
    """The progress in one line."""
    parts = [f"{snapshot.accepted}/{snapshot.n} accepted", f"{snapshot.shards_done}/{snapshot.shards} shards"]
    if snapshot.per_second:
        parts.insert(1, f"{snapshot.per_second:.2f}/s")
    if snapshot.status in _ACTIVE:
        if snapshot.seconds_left is not None:
            parts.insert(2, f"{duration(snapshot.seconds_left)} left")
        starting = f" and {snapshot.pending_workers} starting" if snapshot.pending_workers else ""
        if snapshot.workers or starting:
            parts.append(counted(snapshot.workers, "worker") + starting)
    parts.append(f"rejected {sum(snapshot.rejected.values())}")
    if snapshot.lost_workers:
        parts.append(f"lost workers {snapshot.lost_workers}")
    if snapshot.quarantined:
        parts.append(f"quarantined {len(snapshot.quarantined)}")
    return f"{snapshot.status}: " + ", ".join(parts)


def _table(snapshot: Snapshot) -> Group:
    rows = Table.grid(padding=(0, 2))
    rows.add_row("status", snapshot.status)
    rows.add_row("accepted", f"{snapshot.accepted} of {snapshot.n}", ProgressBar(snapshot.n, snapshot.accepted))
    left = "?" if snapshot.seconds_left is None else duration(snapshot.seconds_left)
    rows.add_row("speed", f"{snapshot.per_second:.2f} per second", f"{left} left")
    rows.add_row(
        "workers", str(snapshot.workers), _counts(starting=snapshot.pending_workers, lost=snapshot.lost_workers)
    )
    problems = _counts(requeued=snapshot.requeued, quarantined=len(snapshot.quarantined))
    rows.add_row("shards", f"{snapshot.shards_done} of {snapshot.shards}", problems)
    rows.add_row("rejected", str(sum(snapshot.rejected.values())), tally(snapshot.rejected))
    errors = map(printable, snapshot.errors[-ERRORS_SHOWN:])
    return Group(rows, *(Text(error, style="yellow", overflow="ellipsis", no_wrap=True) for error in errors))


def _counts(**counts: int) -> str:
    """The counts above 0 with their names."""
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
