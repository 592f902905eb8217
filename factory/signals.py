"""SIGINT, SIGTERM and SIGHUP, which request a graceful stop; the exit code shows which signal it was."""

import _thread
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from factory import exit_codes

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SOON = 0.05
"""Seconds until a lost interrupt is repeated."""
_SAME = 1.0
"""Seconds in which several SIGTERMs are one request: `timeout` sends two, and Slurm signals a job and its step."""
_received: int | None = None
_terminals: list[int] = []
"""The file descriptors of the output that are terminals."""


def listen() -> None:
    """Make SIGTERM and SIGHUP act like Ctrl-C, and ensure that SIGINT has an effect; for the main thread of a command.

    SIGHUP remains ignored if it is, as after `nohup`.

    Signals that the process received before are forgotten, so that they do not affect the exit code.

    A shell starts background jobs with SIGINT ignored, and Python inherits this: a SIGINT from `kill` or an
    orchestrator would have no effect. While the command was being loaded, SIGINT had its default action.
    """
    global _received
    _received = None
    _terminals[:] = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
    sys.unraisablehook = _repeat_lost_interrupt
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.SIG_DFL, None):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _hang_up)


def terminate(number: int, frame: FrameType | None) -> None:
    """Handler of SIGTERM: record the signal, then call the current handler of SIGINT."""
    global _received
    _received = number
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(signal.SIGINT, frame)
    else:
        raise KeyboardInterrupt


def _hang_up(number: int, frame: FrameType | None) -> None:
    """Handler of SIGHUP: act as for SIGTERM."""
    _leave_terminal()
    terminate(signal.SIGTERM, frame)


def _leave_terminal() -> None:
    """After SIGHUP, when the terminal has been closed: discard output to it, which would fail, and ignore SIGHUP.

    A shell may repeat SIGHUP, which must not count as a second request to stop. Child processes would inherit SIG_IGN.
    """
    signal.signal(signal.SIGHUP, lambda number, frame: None)
    _discard_output()


def leave_closed_terminal() -> None:
    """Discard output to a terminal that was closed without a SIGHUP, as after `disown`; for calls before each output.

    Otherwise, the next line of progress would end the run.
    """
    if not all(map(os.isatty, _terminals)):
        _discard_output()


def _discard_output() -> None:
    """Replace the terminals of the output by /dev/null."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for descriptor in _terminals:
        os.dup2(nothing, descriptor)
    os.close(nothing)
    _terminals.clear()


def _repeat_lost_interrupt(problem: "sys.UnraisableHookArgs") -> None:
    """Interrupt again if Python has discarded an interrupt that arrived in a destructor or in a handler of a fork.

    While Ray starts, it forks many times. Without this function, a Ctrl-C at such a moment would print a traceback and
    have no effect.
    """
    if problem.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(problem)
        return
    with contextlib.suppress(RuntimeError):  # the program is ending anyway
        again = threading.Timer(_SOON, _thread.interrupt_main)  # not now: this function may not raise either
        again.daemon = True
        again.start()


def exit_code() -> int:
    """The exit code of an interrupted command: 143 after SIGTERM or SIGHUP, otherwise 130."""
    return exit_codes.TERMINATED if _received == signal.SIGTERM else exit_codes.INTERRUPTED


def run_forwarding_signals(command: Sequence[str]) -> tuple[int, bool]:
    """Run a command, forward signals to it, and wait for it to end. Returns (exit code, whether it received a signal).

    A forwarded signal may kill the child before it handles signals. The exit code is then the same as if the child had
    handled it.

    The child runs in a new session. Otherwise a terminal would send Ctrl-C to both processes, and the child would
    mistake the forwarded signal for a second Ctrl-C, which stops immediately. This way, a training step can write its
    checkpoint.
    """
    numbers = [number for number in _FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    early: list[int] = []
    sent: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        global _received
        _received = number
        if number == signal.SIGHUP:
            _leave_terminal()
            _received = signal.SIGTERM
        if child is None:
            early.append(number)
        else:
            send(child, number)

    def send(child: "subprocess.Popen[bytes]", number: int) -> None:
        sent.append(number)
        child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        child = subprocess.Popen(command, start_new_session=True)
        for number in early:
            send(child, number)
        code = child.wait()
        return exit_code() if -code in sent else code, bool(sent)
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let the first SIGINT or SIGTERM take effect at the end of the block; a second one takes effect immediately.

    For code that forks. Python discards the exceptions of functions that it calls before and after a fork. If a signal
    handler raises one in the function that releases the lock of `logging`, other threads wait for it forever.
    """
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    received: list[int] = []

    def defer(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            before[signal.Signals(number)](number, frame)

    for number in before:
        signal.signal(number, defer)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            before[signal.Signals(received[0])](received[0], None)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Defer interrupts: the first SIGINT or SIGTERM makes the yielded function return True; a second one interrupts.

    Several SIGTERMs within a second count as one. The previous handlers are restored at the end. In threads other than
    the main thread, signals are not handled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested: float | None = None

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested is None:
            requested = time.monotonic()
        elif _received != signal.SIGTERM or time.monotonic() - requested > _SAME:
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, request)
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield lambda: requested is not None
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
