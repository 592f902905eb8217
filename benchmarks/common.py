"""Functions that the benchmarks share: command line, errors, processes, timing, and recipes that accept every image."""

import argparse
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from factory.engine.machine import usable_cpus
from factory.errors import UserError

FACTORY = [sys.executable, "-m", "factory"]
"""The command `factory` of this environment."""
NO_FILTERS = dict.fromkeys(("min_area", "max_area", "max_border", "max_overlap", "duplicate_distance", "min_contrast"))
"""The `filters` section of a recipe with random weights, whose images no filter would accept."""


def command_line(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the docstring of the benchmark."""
    return argparse.ArgumentParser(
        prog=_program(), description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def options_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, and print it with the conditions of the measurement."""
    options = parser.parse_args()
    command = " ".join([_program(), shlex.join(sys.argv[1:])]).strip()
    libraries = f"Python {platform.python_version()}, torch {version('torch')}"
    print(f"`{command}`, cores: {usable_cpus()}, {libraries}\n", flush=True)
    return options


def positive(text: str) -> int:
    """The type of an option that is a number of things."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return number


def run(main: Callable[[], None]) -> None:
    """Call the `main` of a benchmark; an error of factory ends it with one sentence, as it ends the command."""
    try:
        main()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs during the `with`, without output; SystemExit with its last line if it fails."""
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors) as process:
            yield process
        if process.returncode:
            errors.seek(0)
            *_, last = ["", *errors.read().decode(errors="replace").splitlines()]
            raise SystemExit(f"{shlex.join(command)} ended with exit code {process.returncode}: {last}")


def median_seconds(work: Callable[[], object], times: int = 3) -> float:
    """The median time of several calls, after one warmup call."""
    work()
    spans = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        spans.append(time.perf_counter() - start)
    return statistics.median(spans)


def _program() -> str:
    return f"python -m benchmarks.{Path(sys.argv[0]).stem}"
