"""Notices that this process was stopped for a while, by SIGSTOP, a frozen container or a paused virtual machine."""

import time

_LONGEST_STEP = 10.0
"""Seconds between two calls, which are half a second apart, after which the process must have been stopped."""


class Pauses:
    """Called at every step, because what did not happen while this process was stopped is not a failure."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def ended(self) -> bool:
        """Whether the process was stopped since the last call."""
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        return elapsed > _LONGEST_STEP
