"""The entry point: registers the commands, and turns errors into messages and exit codes."""

import errno
import inspect
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Annotated, NoReturn

import typer
from typer.models import CommandInfo

import factory
from factory import exit_codes, log_format, signals
from factory.cli import stickers
from factory.cli.compare import compare_segmenters
from factory.cli.export import export
from factory.cli.generate import generate
from factory.cli.grounder import evaluate_grounder, import_grounder, train_grounder
from factory.cli.help_texts import Command, Group
from factory.cli.invert import invert
from factory.cli.messages import print_line
from factory.cli.models import models
from factory.cli.nightly import nightly
from factory.cli.oracle import bootstrap_oracle
from factory.cli.paths import refuse_urls
from factory.cli.plan import plan
from factory.cli.preview import preview
from factory.cli.prompts import prompts
from factory.cli.report import report
from factory.cli.segmenter import evaluate_segmenter, train_segmenter
from factory.cli.status import status
from factory.cli.verify import verify
from factory.cli.workflow import run_steps
from factory.config.usage_errors import usage_text
from factory.errors import UserError, broken_disk, full_disk, printable

_UNUSABLE = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
)
"""Errors of a path that no check of a command has noticed, such as a folder in /proc, which root may write to."""


def _set_help(commands: Iterable[CommandInfo]) -> None:
    """Set the labels of values, and join the lines of each paragraph: typer prints the line breaks of docstrings."""
    for command in commands:
        command.cls = Command
        paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


app = typer.Typer(
    cls=Group,
    help="Generate segmentation datasets from class names with a diffusion model, without human labels.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Datasets": (generate, plan, status, verify, preview, export, report, nightly),
    "Models and prompts": (models, prompts),
    "Grounders": (bootstrap_oracle, invert, train_grounder, evaluate_grounder, import_grounder),
    "Segmenters": (train_segmenter, evaluate_segmenter, compare_segmenters),
}
for _panel, _members in _PANELS.items():
    for _command in _members:
        app.command(rich_help_panel=_panel)(_command)
_OTHER = "Jobs and embedded models"
app.command("run", rich_help_panel=_OTHER)(run_steps)
app.add_typer(stickers.app, name="stickers", cls=Group, rich_help_panel=_OTHER)
app.command("sheet", hidden=True)(preview)  # the name of `preview` in version 0.1.0
for _commands in (app.registered_commands, stickers.app.registered_commands):
    refuse_urls(_commands)
    _set_help(_commands)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"factory {factory.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Generate segmentation datasets from class names with a diffusion model, without human labels."""


def run() -> None:
    """Run the command line and exit with a code from `factory.exit_codes`.

    If the reader of the output closes the pipe, the exit code is 1 without a message: the work was not finished.
    """
    signals.listen()
    try:
        log_format.configure()
        code = _run_command()
    except KeyboardInterrupt:  # before typer handles it: on a busy machine, it needs seconds to build the commands
        code = exit_codes.INTERRUPTED
    except UserError as error:
        _print_error(str(error))
        _exit(error.exit_code)
    except SystemExit as end:
        if isinstance(end.code, int):  # typer turns a closed pipe into 1 without a message
            _exit(end.code)
        raise
    except Exception as error:
        if full := full_disk(error):
            _print_error(f"cannot write: {full}. Free some space and rerun the same command.")
            _exit(exit_codes.TRY_AGAIN)
        if isinstance(error, FileNotFoundError) and not _has_current_folder():
            _print_error("the current directory has been deleted; change to another one.")
            _exit(exit_codes.BAD_INPUT)
        if isinstance(error, OSError) and error.errno in _UNUSABLE and error.filename is not None:
            _print_error(f"cannot use {error.filename}: {error.strerror}; give another path, or correct this one.")
            _exit(exit_codes.BAD_INPUT)
        if broken := broken_disk(error):
            _print_error(broken)
            _exit(exit_codes.BAD_INPUT)
        if not log_format.wants_json():
            raise
        logging.getLogger("factory").critical("Unexpected error.", exc_info=True)
        _exit(exit_codes.UNEXPECTED)
    if code == exit_codes.INTERRUPTED:  # typer turns KeyboardInterrupt into this code without a message
        _print_error("Interrupted. Committed work is kept; rerun the same command to resume.", prefix="")
        _exit(signals.exit_code(), wait=False)
    _exit(code, wait=code != exit_codes.TERMINATED)


def _run_command() -> int:
    """Run the command that the arguments name; returns its exit code. UserError if typer rejects the arguments."""
    try:
        code = app(prog_name="factory", standalone_mode=False)
    except Exception as error:
        text = usage_text(error)
        if text is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is shown instead of a message
            return exit_codes.BAD_INPUT
        context = getattr(error, "ctx", None)
        command = "factory COMMAND" if context is None else context.command_path
        raise UserError(f"{text}; see `{command} --help`.") from error
    return code if isinstance(code, int) else exit_codes.DONE


def _has_current_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _exit(code: int, wait: bool = True) -> NoReturn:
    """Exit, without cleanup if the cluster is gone, because Ray would wait for it and then abort the process.

    Without `wait`, threads are not waited for, which may read from a store that does not respond.
    """
    cluster = sys.modules.get("factory.engine.cluster")
    busy = any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())
    if (cluster is not None and cluster.is_stuck()) or (busy and not wait):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code) from None


def _print_error(message: str, prefix: str = "Error: ") -> None:
    message = printable(message)
    if logging.getLogger("factory").handlers and log_format.wants_json():
        logging.getLogger("factory").error(message)
        return
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    text = prefix + message
    print_line(f"\033[31m{text}\033[0m" if colour else text)
