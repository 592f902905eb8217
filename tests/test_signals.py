"""The exit code of an interrupted command."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from factory import exit_codes, signals


def test_exit_code_tells_which_signal_arrived() -> None:
    assert signals.exit_code() == exit_codes.INTERRUPTED
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.exit_code() == exit_codes.TERMINATED


def test_hangup_during_the_start_of_a_child_reaches_it_as_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def interrupted_start(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        os.kill(os.getpid(), signal.SIGHUP)
        return start(command, **options)

    monkeypatch.setattr(subprocess, "Popen", interrupted_start)
    code = signals.run_forwarding_signals([sys.executable, "-c", "import time; time.sleep(30)"])
    assert code == exit_codes.TERMINATED, "as if the child had handled the signal"


def test_command_forgets_signals_from_before_it_started() -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    signals.listen()
    assert signals.exit_code() == exit_codes.INTERRUPTED


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_that_python_discards_is_repeated(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It discards exceptions in destructors and in handlers of forks, as while Ray starts."""

    class Interrupted:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    signals.listen()
    Interrupted()
    with pytest.raises(KeyboardInterrupt):
        time.sleep(5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("signals_sent", "completed"), [(1, True), (2, False)])
def test_deferred_signal_takes_effect_at_the_end_of_the_block(number: int, signals_sent: int, completed: bool) -> None:
    steps = []

    def block() -> None:
        with signals.deferred():
            for _ in range(signals_sent):
                os.kill(os.getpid(), number)
            steps.append("completed")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert bool(steps) == completed, "a second signal takes effect immediately"
    with signals.deferred():
        pass


INTERRUPTED_WHILE_LOADING = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "factory.cli.main":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from factory.__main__ import run
run()
"""


def test_interrupt_while_the_command_line_is_loaded_prints_no_traceback() -> None:
    command = [sys.executable, "-c", INTERRUPTED_WHILE_LOADING, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")
