"""The exit code of an interrupted command."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from factory import exit_codes, signals


def test_exit_code_tells_which_signal_arrived() -> None:
    assert signals.exit_code() == exit_codes.INTERRUPTED
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.exit_code() == exit_codes.TERMINATED


def test_hangup_during_the_start_of_a_child_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def interrupted_start(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        os.kill(os.getpid(), signal.SIGHUP)
        return start(command, **options)

    monkeypatch.setattr(subprocess, "Popen", interrupted_start)
    code, interrupted = signals.run_forwarding_signals([sys.executable, "-c", "import time; time.sleep(30)"])
    assert code == exit_codes.TERMINATED, "as if the child had handled the signal"
    assert interrupted


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


EARLY = """
import os, sys, typer.main
from factory.cli import main

build = typer.main.get_command

def interrupted(app):
    os.kill(os.getpid(), int(sys.argv[1]))
    return build(app)

typer.main.get_command = interrupted
main.run()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_before_the_commands_are_built_prints_no_traceback(number: signal.Signals, code: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", EARLY, str(int(number))], capture_output=True, text=True, timeout=100
    )
    assert result.returncode == code
    assert result.stderr.startswith("Interrupted. "), result.stderr


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


UNTIL_STOPPED = """
import sys, time
from pathlib import Path
from factory import signals
signals.listen()
with signals.stop_requests() as stop:
    print("started", flush=True)
    while not stop():
        time.sleep(0.02)
    time.sleep(0.2)  # a second SIGHUP may arrive
    print("writing a checkpoint", flush=True)
    Path(sys.argv[1]).write_text(str(signals.exit_code()))
"""
IN_A_JOB = """
import sys
from factory import signals
signals.listen()
print("code", *signals.run_forwarding_signals([sys.executable, *sys.argv[1:]]), flush=True)
"""


@pytest.mark.parametrize("prefix", [[], ["-c", IN_A_JOB]], ids=["command", "step of a job"])
def test_closed_terminal_stops_a_command_gracefully(prefix: list[str], tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, *prefix, "-c", UNTIL_STOPPED, str(tmp_path / "checkpoint")]
    with subprocess.Popen(
        command,
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        os.close(terminal)
        assert b"started" in os.read(controller, 100)
        os.close(controller)  # like closing the window: the kernel sends SIGHUP, and so does a shell
        time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        process.wait(30)
    assert (tmp_path / "checkpoint").read_text() == str(exit_codes.TERMINATED)
    assert process.returncode == 0, "printing did not fail"


WITH_PROGRESS = """
import sys, time
from dataclasses import replace
from pathlib import Path
from factory import signals
from factory.cli.messages import to_stdout
from factory.cli.view import watching
from tests.support.in_process import SNAPSHOT
signals.listen()
with watching(quiet=False) as watch:
    print("started", flush=True)
    time.sleep(0.2)
    for accepted in range(10):
        watch(replace(SNAPSHOT, status="done", accepted=accepted))
        time.sleep(0.05)
to_stdout("complete")
Path(sys.argv[1]).write_text("complete")
"""


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_terminal_that_closes_without_a_signal_does_not_end_a_command(kind: str, tmp_path: Path) -> None:
    """As after `disown`. The live view and lines of progress would fail."""
    controller, terminal = pty.openpty()
    command = [sys.executable, "-c", WITH_PROGRESS, str(tmp_path / "file")]
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env={**os.environ, "TERM": kind}) as process:
        os.close(terminal)
        printed = b""
        while b"started\r\n" not in printed:
            printed += os.read(controller, 1000)
        os.close(controller)
        process.wait(30)
    assert (tmp_path / "file").read_text() == "complete"
    assert process.returncode == 0
