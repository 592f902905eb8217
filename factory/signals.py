"""SIGINT and SIGTERM: both ask the running work to stop in order, and the exit code tells which one it was."""

import contextlib
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from factory import exit_codes

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_received: int | None = None


def listen() -> None:
    """Make SIGTERM act as Ctrl-C does, and hear Ctrl-C; for the main thread of a command.

    A shell starts background jobs with SIGINT ignored, and Python keeps what it inherits: `kill -INT` and an
    orchestrator's SIGINT would have no effect.
    """
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, terminate)


def terminate(number: int, frame: FrameType | None) -> None:
    """Handler of SIGTERM: remember it, then do what Ctrl-C does at this moment."""
    global _received
    _received = number
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(signal.SIGINT, frame)
    else:
        raise KeyboardInterrupt


def exit_code() -> int:
    """Exit code of an interrupted command: 143 after SIGTERM, otherwise 130."""
    return exit_codes.TERMINATED if _received == signal.SIGTERM else exit_codes.INTERRUPTED


def run_passing_signals_on(command: Sequence[str]) -> int:
    """Run a command to its end and return its exit code; signals to this process go on to it, each one once.

    The child has a session of its own: a terminal would send Ctrl-C to both, and the child would take the copy that is
    passed on for a second, impatient one. It ends in its own time, so a training leaves its checkpoint.
    """
    numbers = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    early: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        global _received
        _received = number
        if child is None:
            early.append(number)
        else:
            child.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        child = subprocess.Popen(command, start_new_session=True)
        for number in early:
            child.send_signal(number)
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within the `with`, the first SIGINT or SIGTERM only makes the yielded function true; a second one interrupts.

    The handlers from before are restored. In other threads than the main one, signals are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, ask)
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
