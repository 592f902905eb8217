"""Progress bars: live on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
    if quiet:
        yield lambda done: None
    elif is_live():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total)
            yield lambda done: bar.update(task, completed=done)
    else:
        yield _plain_lines(label, total)


def _plain_lines(label: str, total: int) -> Callable[[int], None]:
    """The remaining time is estimated since the previous line: a resumed command skips what exists in no time."""
    last, before = time.monotonic(), 0

    def advance(done: int) -> None:
        nonlocal last, before
        now = time.monotonic()
        if now - last >= 5 or done == total:
            left = f", {(now - last) / (done - before) * (total - done):.0f} s left" if done > before else ""
            last, before = now, done
            print(f"{label} {done}/{total}{left}", file=sys.stderr, flush=True)

    return advance
