"""The exit code of an interrupted command."""

import os
import signal

import pytest

from factory import exit_codes, signals


def test_exit_code_tells_which_signal_arrived() -> None:
    assert signals.exit_code() == exit_codes.INTERRUPTED
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.exit_code() == exit_codes.TERMINATED


def test_command_forgets_signals_from_before_it_started() -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    signals.listen()
    assert signals.exit_code() == exit_codes.INTERRUPTED
