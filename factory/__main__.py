"""The entry point of the command `factory`, and of `python -m factory`."""

import os
import signal
import sys


def run() -> None:
    """Load and run the command line.

    Loading takes some tenths of a second. Until `factory.signals` handles Ctrl-C, it ends the process without a
    traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    open_streams()
    from factory.cli.main import run as run_command

    run_command()


def open_streams() -> None:
    """Open the standard streams that are closed, as after `factory ... <&- >&- 2>&-`, which starts a daemon.

    Python has no objects for them, and the next files would get their numbers: what a library prints would be written
    into a file of a dataset.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))


if __name__ == "__main__":
    run()
