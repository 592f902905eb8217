"""`factory status`: how far a set is."""

import json
from typing import Annotated, Any

import typer

from factory.files.strict_json import dumps

_AT_WORK = ("running", "waiting", "finishing")


def status(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder or URL of a set.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show how far a dataset is, from its receipts; it may be running elsewhere.

    "stale" is a run whose driver gave no sign of life for more than a minute: give its command again to resume.

    Example: factory status out/

    Example: factory status s3://bucket/set --json
    """
    data = state(folder)
    if as_json:
        typer.echo(dumps(data))
        return
    shards = f"{data['shards']} of {data['shards_planned']} shards"
    typer.echo(f"{data['samples']} of {data['n']} samples, {shards}: {data['status']}.")
    rejected = ", ".join(f"{reason} {count}" for reason, count in data["rejected"].items())
    typer.echo(f"{data['attempts']} attempts" + (f", rejected: {rejected}." if rejected else ", none rejected."))
    if data["quarantined"]:
        typer.echo(f"Given up: shards {', '.join(data['quarantined'])}; see quarantine/, and run again to retry.")


def state(folder: str) -> dict[str, Any]:
    """The state of a set as plain data."""
    from factory.config.plan import Plan
    from factory.dataset import lease
    from factory.dataset.state import PROGRESS, recipe_of, statement
    from factory.dataset.state import state as receipts_state
    from factory.dataset.storage import Store

    store = Store(folder)
    recipe = recipe_of(store)
    plan = Plan(recipe)
    data = statement(recipe, plan, receipts_state(store, plan))
    try:
        progress = dict(json.loads(store.get(PROGRESS) or b"{}"))
    except (ValueError, TypeError):
        progress = {}
    quarantined = [name.removeprefix("quarantine/").removesuffix(".json") for name in store.list("quarantine")]
    said, dead = progress.get("status", "begun"), lease.stale(store)
    if data["complete"]:
        said = "complete"
    elif dead or (dead is None and said in _AT_WORK):
        said = "stale"
    elif dead is False and said not in _AT_WORK:
        said = "running"  # it has begun, and not written its progress yet
    return data | {"status": said, "progress": progress, "quarantined": quarantined}
