"""The live view of a terminal, log records, and how the program ends after an error."""

import errno
import io
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from rich.console import Console
from safetensors import SafetensorError

from factory import exit_codes, log_format
from factory.cli import main, view
from factory.cli.messages import to_stderr
from factory.cli.progress import progress_bar
from factory.errors import UserError
from tests.support.in_process import SNAPSHOT


def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return stream


def plain(stream: io.StringIO) -> str:
    """The text of a stream without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


def test_run_is_shown_as_a_table_on_a_terminal() -> None:
    stream = io.StringIO()
    Console(file=stream, width=100).print(view._table(SNAPSHOT))
    lines = [" ".join(line.split()) for line in stream.getvalue().splitlines()]
    assert lines[0] == "status running"
    assert lines[1].startswith("accepted 30 of 100 ")
    assert lines[2:] == [
        "speed 2.50 per second 1:02:05 left",
        "workers 2 1 starting, 1 lost",
        "shards 3 of 10 5 requeued, 2 quarantined",
        "rejected 5 mask_small 4, low_confidence 1",
        "a worker was lost",
    ]


def test_live_view_and_progress_bar_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    with view.watching(quiet=False) as watch:
        watch(SNAPSHOT)
    assert "30 of 100" in plain(stream)
    with progress_bar("rendering", 8) as advance:
        advance(5)
    assert re.search(r"rendering .*5/8", plain(stream))


@pytest.mark.parametrize(
    ("terminal_type", "variables"),
    [("dumb", {}), (None, {"FORCE_COLOR": "1"}), (None, {"TTY_COMPATIBLE": "1"})],
    ids=["dumb terminal", "file with FORCE_COLOR", "file with TTY_COMPATIBLE"],
)
def test_progress_is_printed_as_lines_where_it_cannot_be_replaced(
    terminal_type: str | None, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = terminal(monkeypatch)
    if terminal_type is None:
        monkeypatch.setattr(stream, "isatty", lambda: False)
    else:
        monkeypatch.setenv("TERM", terminal_type)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with view.watching(quiet=False) as watch:
        watch(SNAPSHOT)
    with progress_bar("rendering", 8) as advance:
        advance(8)
    error, run, bar = stream.getvalue().splitlines()
    assert error == "  a worker was lost"
    assert run.startswith("running: 30/100 accepted, ")
    assert bar == "rendering 8/8"


def test_remaining_time_of_a_resumed_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that has written 900 of 1,000 samples before skips them, and writes two per second."""
    clock = [1000.0]
    monkeypatch.setattr("factory.cli.progress.time.monotonic", lambda: clock[0])
    with progress_bar("exporting samples", 1000) as advance:
        for done in (900, 902, 910, 920, 920):
            advance(done)
            clock[0] += 4
    assert capsys.readouterr().err.splitlines() == [
        "exporting samples 910/1000, 72 s left",
        "exporting samples 920/1000, 64 s left",
    ]


@pytest.fixture
def json_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    log = logging.getLogger("factory")
    before = log.handlers[:], log.propagate, log.level
    monkeypatch.setenv("FACTORY_LOG_FORMAT", "json")
    yield
    log.handlers[:], log.propagate = before[:2]
    log.setLevel(before[2])


def test_errors_of_workers_and_quarantine_are_log_records(
    json_log: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "app", lambda **options: show())

    def show() -> None:
        with view.watching(quiet=True) as watch:
            watch(replace(SNAPSHOT, status="done"))

    with pytest.raises(SystemExit):
        main.run()
    warning, info = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (warning["level"], warning["message"]) == ("warning", "a worker was lost")
    assert info["progress"]["quarantined"] == [7, 8]
    assert info["message"].endswith("rejected 5, lost workers 1, quarantined 2")


def test_messages_and_progress_are_log_records(json_log: None, capsys: pytest.CaptureFixture[str]) -> None:
    log_format.configure()
    with progress_bar("exporting samples", 5, quiet=True) as advance:
        advance(5)
    to_stderr("5 images of folder")
    records = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(record["level"], record["message"]) for record in records] == [
        ("info", "exporting samples 5/5"),
        ("info", "5 images of folder"),
    ]


def raising(problem: BaseException) -> Any:
    def command(**options: Any) -> None:
        raise problem

    return command


def test_unexpected_error_is_a_log_record(
    json_log: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "app", raising(KeyError("x")))
    with pytest.raises(SystemExit) as end:
        main.run()
    assert end.value.code == exit_codes.UNEXPECTED
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (line["level"], line["message"]) == ("critical", "Unexpected error.")
    assert line["exception"].endswith("KeyError: 'x'")


def test_unexpected_error_without_log_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "app", raising(KeyError("x")))
    with pytest.raises(KeyError):
        main.run()


def _error_of_torch(number: int) -> RuntimeError:
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")
    error.__context__ = OSError(number, os.strerror(number))
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        _error_of_torch(errno.ENOSPC),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_under_the_output_is_a_temporary_failure(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `factory status out/ > file`, or a checkpoint."""
    monkeypatch.setattr(main, "app", raising(error))
    with pytest.raises(SystemExit) as end:
        main.run()
    assert end.value.code == exit_codes.TRY_AGAIN
    assert "No space left on device. Free some space and rerun the same command." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "named", "problem"),
    [
        (OSError(errno.EIO, "Input/output error"), "a file", "Input/output error"),
        (OSError(errno.EIO, "Input/output error", "p.partial"), "p.partial", "Input/output error"),
        (OSError(errno.EROFS, "Read-only file system"), "a file", "Read-only file system"),
        (_error_of_torch(errno.EIO), "a file", "Input/output error"),
        (SafetensorError("I/O error: Input/output error (os error 5)"), "a file", "Input/output error"),
    ],
)
def test_a_broken_disk_is_reported_in_one_sentence(
    error: Exception, named: str, problem: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write to an open file has no path. It fails with EROFS if the disk becomes read-only meanwhile."""
    monkeypatch.setattr(main, "app", raising(error))
    with pytest.raises(SystemExit) as end:
        main.run()
    assert end.value.code == exit_codes.BAD_INPUT
    message = f"Error: cannot use {named}: {problem}; check the disk, and rerun the same command.\n"
    assert capsys.readouterr().err == message


def test_a_full_disk_under_a_log_ends_no_run_and_changes_no_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `factory generate ... 2> file`."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(stream, "write", lambda text: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with view.watching(quiet=False) as watch:
        watch(replace(SNAPSHOT, status="done"))
    with progress_bar("exporting samples", 5) as advance:
        advance(5)
    monkeypatch.setattr(main, "app", raising(UserError("wrong")))
    with pytest.raises(SystemExit) as end:
        main.run()
    assert end.value.code == exit_codes.BAD_INPUT


@pytest.mark.parametrize(
    ("changes", "coloured"),
    [({}, True), ({"TERM": "dumb"}, False), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)],
)
def test_messages_have_colours_only_where_they_are_wanted(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], coloured: bool
) -> None:
    stream = terminal(monkeypatch)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(main, "app", raising(UserError("wrong")))
    with pytest.raises(SystemExit):
        main.run()
    assert stream.getvalue() == ("\033[31mError: wrong\033[0m\n" if coloured else "Error: wrong\n")


def test_process_ends_without_cleanup_if_ray_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "factory.engine.cluster", SimpleNamespace(is_stuck=lambda: True))
    monkeypatch.setattr(main, "app", raising(UserError("gone")))
    monkeypatch.setattr(main.os, "_exit", lambda code: (_ for _ in ()).throw(typer.Exit(code)))
    with pytest.raises(typer.Exit) as end:
        main.run()
    assert end.value.exit_code == exit_codes.BAD_INPUT


@pytest.mark.parametrize("code", [exit_codes.INTERRUPTED, exit_codes.TERMINATED])
def test_interrupted_command_does_not_wait_for_requests_to_a_store(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nightly` itself returns the code of SIGTERM."""
    responds = threading.Event()
    monkeypatch.setattr(main, "_run_command", lambda: code)
    monkeypatch.setattr(main.os, "_exit", lambda code: (_ for _ in ()).throw(typer.Exit(code)))
    with ThreadPoolExecutor(1) as readers:
        readers.submit(responds.wait, 20)
        with pytest.raises(typer.Exit) as end:
            main.run()
        responds.set()
    assert end.value.exit_code == code
