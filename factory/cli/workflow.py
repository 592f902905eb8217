"""`factory run`: a chain of commands from one file."""

from pathlib import Path
from typing import Annotated

import typer


def run_steps(
    context: typer.Context,
    job: Annotated[Path, typer.Argument(help="Job file, as jobs/voc.yaml.")],
    out: Annotated[Path | None, typer.Option(help="Folder of all that the job makes; the file's by default.")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="A value of the file: --set n=1000.")] = None,
    dry: Annotated[bool, typer.Option("--dry", help="Print the commands and run nothing.")] = False,
) -> None:
    """Run a job: bootstrap-oracle, train-grounder, generate, train-segmenter and so on, as its file says.

    Steps that are done are passed over, and each step resumes by itself: after a kill, the same command goes on.

    Example: factory run jobs/voc.yaml --out runs/voc

    Example: factory run jobs/protocol-2.yaml --set n=200 --dry
    """
    from factory.errors import UserError
    from factory.workflow.run import load_workflow, run_workflow

    pairs = [one.partition("=") for one in change or []]
    if any(not equals for _, equals, _ in pairs):
        raise UserError(f"--set is name=value, as in --set n=1000; got {', '.join(change or [])}.")
    assert context.parent is not None
    commands = {name: one for name, one in context.parent.command.commands.items() if name != "run"}  # type: ignore[attr-defined]
    chosen = load_workflow(job, out, commands, {name: value for name, _, value in pairs})
    if dry:
        for step in chosen.steps:
            typer.echo(step.told())
        return
    run_workflow(chosen, lambda text: typer.echo(text, err=True))
