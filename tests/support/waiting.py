"""Waiting for other processes, which may be slow on a busy machine."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], seconds: float, message: str, interval: float = 0.5) -> None:
    """Wait until a condition is true; raises AssertionError with the message otherwise."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, message
        time.sleep(interval)
