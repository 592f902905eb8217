"""Discards what Ray prints to standard output."""

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Discard standard output, to which Ray prints regardless of its log level while it trains."""
    with open(os.devnull, "w") as sink, redirect_stdout(sink):
        yield


class _OtherThreads:
    """Standard output without what one thread writes to it."""

    def __init__(self, output: Any) -> None:
        self._output = output
        self.muted: int | None = threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self.muted else int(self._output.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._output, name)


@contextmanager
def quiet_here() -> Iterator[None]:
    """Like `quiet`, but keep what other threads print: a program may start Ray in one thread and work in another."""
    output: Any = _OtherThreads(sys.stdout or io.StringIO())  # a service may have no standard output
    try:
        with redirect_stdout(output):
            yield
    finally:
        output.muted = None  # another redirection may have kept it, and a new thread may have the same number
