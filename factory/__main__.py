"""The entry point of the command `factory`, and of `python -m factory`."""

import signal


def run() -> None:
    """Load and run the command line.

    Loading takes some tenths of a second. Until `factory.signals` handles Ctrl-C, it ends the process without a
    traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from factory.cli.main import run as run_command

    run_command()


if __name__ == "__main__":
    run()
