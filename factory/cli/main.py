"""The entry point: the commands by name, and how errors end."""

import os
import sys
from typing import Annotated, NoReturn

import typer

import factory
from factory import exit_codes, signals
from factory.cli import stickers
from factory.cli.compare import compare_segmenters
from factory.cli.export import export
from factory.cli.generate import generate
from factory.cli.grounder import evaluate_grounder, import_grounder, train_grounder
from factory.cli.invert import invert
from factory.cli.models import models
from factory.cli.oracle import bootstrap_oracle
from factory.cli.paths import refuse_urls
from factory.cli.plan import plan
from factory.cli.preview import sheet
from factory.cli.segmenter import evaluate_segmenter, train_segmenter
from factory.cli.status import status
from factory.cli.verify import verify
from factory.cli.workflow import run_steps
from factory.errors import UserError

app = typer.Typer(
    help="Turns class names into segmentation datasets: images with masks from a diffusion model, no human label.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _command in (generate, plan, status, verify, models, sheet, export, invert):
    app.command()(_command)
app.command("bootstrap-oracle")(bootstrap_oracle)
app.command("train-grounder")(train_grounder)
app.command("evaluate-grounder")(evaluate_grounder)
app.command("import-grounder")(import_grounder)
app.command("train-segmenter")(train_segmenter)
app.command("evaluate-segmenter")(evaluate_segmenter)
app.command("compare-segmenters")(compare_segmenters)
app.command("run")(run_steps)
app.add_typer(stickers.app, name="stickers")
refuse_urls((*app.registered_commands, *stickers.app.registered_commands))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"factory {factory.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Turns class names into segmentation datasets: images with masks from a diffusion model, no human label."""


def run() -> None:
    """Run the command line and end the process with a code of `factory.exit_codes`.

    Whoever stops reading the output gets a quiet 1, for the work was not finished.
    """
    signals.listen()
    try:
        app()
    except UserError as error:
        _say(str(error))
        _end(error.exit_code)
    except SystemExit as end:
        # typer turns KeyboardInterrupt into this code and a closed pipe into 1, both without a word.
        if end.code == exit_codes.INTERRUPTED:
            _say("Interrupted; what is written is kept, and the same command continues from there.")
            _end(signals.exit_code())
        raise


def _end(code: int) -> NoReturn:
    """Exit; at once where Ray would wait for a cluster that is gone, and then end the process in its own way."""
    cluster = sys.modules.get("factory.engine.cluster")
    if cluster is not None and cluster.is_stuck():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code) from None


def _say(sentence: str) -> None:
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print(f"\033[31m{sentence}\033[0m" if colour else sentence, file=sys.stderr)
