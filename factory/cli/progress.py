"""Progress bars: live on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from factory import log_format
from factory.cli.messages import to_stderr
from factory.signals import leave_closed_terminal


def is_live() -> bool:
    """Whether standard error is a terminal on which lines can be replaced.

    Rich alone would also replace them in a file if FORCE_COLOR is set, as in many CI systems, and would show nothing on
    a terminal of type `dumb`.
    """
    if not sys.stderr.isatty():
        return False
    from rich.console import Console

    console = Console(stderr=True)
    return console.is_terminal and not console.is_dumb_terminal


@contextmanager
def progress_bar(label: str, total: int, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number done so far; off a terminal, it prints a line every five seconds."""
    if log_format.wants_json():
        yield _plain_lines(label, total)
    elif quiet:
        yield lambda done: None
    elif is_live():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total)

            def advance(done: int) -> None:
                leave_closed_terminal()
                bar.update(task, completed=done)

            yield advance
    else:
        yield _plain_lines(label, total)


def _plain_lines(label: str, total: int) -> Callable[[int], None]:
    """The remaining time is estimated since the previous line, and at first since the first call.

    The first call of a resumed command counts what exists already, which has taken it no time.
    """
    last, before, first = time.monotonic(), 0, True

    def advance(done: int) -> None:
        nonlocal last, before, first
        now = time.monotonic()
        if is_due := now - last >= 5 or done == total:
            left = f", {(now - last) / (done - before) * (total - done):.0f} s left" if done > before else ""
            to_stderr(f"{label} {done}/{total}{'' if first else left}")
        if is_due or first:
            last, before, first = now, done, False

    return advance
