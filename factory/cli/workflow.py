"""`factory run`: runs a job, which is a chain of commands from one file."""

from pathlib import Path
from typing import Annotated

import typer


def run_steps(
    context: typer.Context,
    job: Annotated[Path, typer.Argument(metavar="JOB", help="Job file, such as jobs/voc.yaml.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the output of the job; overrides `out:` of the file.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a value of the file, as in --set n=1000; can be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "--dry", help="Print the commands without running them.")
    ] = False,
) -> None:
    """Run a job: a chain of factory commands from one file.

    Completed steps are skipped, and an interrupted step resumes: rerun the same command after a failure.

    Example: factory run jobs/voc.yaml --out runs/voc

    Example: factory run jobs/protocol-2.yaml --set n=200 --dry-run
    """
    from factory.cli.messages import to_stderr, to_stdout
    from factory.errors import UserError
    from factory.workflow.run import load_workflow, run_workflow

    pairs = [item.partition("=") for item in change or []]
    if any(not equals for _, equals, _ in pairs):
        raise UserError(f"--set must be name=value, as in --set n=1000; got {', '.join(change or [])}.")
    names = [name for name, _, _ in pairs]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--set gives {repeated} several values: {', '.join(change or [])}; give one.")
    assert context.parent is not None
    group = context.parent.command
    assert isinstance(group, typer.core.TyperGroup)
    commands = {name: command for name, command in group.commands.items() if name != "run"}
    loaded = load_workflow(job, out, commands, {name: value for name, _, value in pairs})
    if dry_run:
        for step in loaded.steps:
            to_stdout(step.command_line())
        return
    run_workflow(loaded, to_stderr)
