"""`factory status`: the progress of a dataset, or all nights of `factory nightly`."""

from typing import Annotated, Any

import typer

from factory.cli.messages import to_stdout
from factory.cli.nightly import nights_of, nights_table
from factory.cli.shared_options import AsJson
from factory.errors import counted, first_few, tally
from factory.files.strict_json import dumps

_ACTIVE = ("running", "waiting", "finishing")
_STATUSES = (*_ACTIVE, "done", "incomplete", "interrupted", "failed")


def status(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET", help="Folder or URL (s3://, gs://, az://) of a dataset, or the root of nightly datasets."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Show the progress of a dataset, or list the nights of `factory nightly`.

    A dataset can be watched from any machine while it is generated. The state "stale" means that the driver has sent
    no heartbeat for more than a minute: rerun its command to resume. For the root of nightly datasets, each line is a
    night with its state, samples, yield, time and cost.

    Example: factory status out/

    Example: factory status s3://bucket/nightly --json
    """
    from factory.dataset.continuation import continuing_command
    from factory.dataset.storage import Store

    nights = _nights(dataset)
    if nights:
        to_stdout(dumps({"root": dataset, "nights": nights}) if as_json else nights_table(nights))
        return
    data = state(dataset)
    if as_json:
        to_stdout(dumps(data))
        return
    shards = f"{data['shards']} of {data['shards_planned']} shards"
    to_stdout(f"{data['samples']} of {data['n']} samples, {shards}: {data['status']}.")
    if data["attempts"]:
        rejected = f"rejected: {tally(data['rejected'])}" if data["rejected"] else "none rejected"
        to_stdout(f"{counted(data['attempts'], 'attempt')}, {rejected}.")
    if data["exhausted"]:
        to_stdout(f"{counted(data['exhausted'], 'sample was', 'samples were')} rejected in every attempt and skipped.")
    if data["quarantined"]:
        to_stdout(f"Quarantined shards: {first_few(data['quarantined'], 10)}; see quarantine/.")
    if data["status"] not in ("complete", *_ACTIVE):
        killed = "The run was killed. " if data["status"] == "stale" else ""
        purpose = "retry them" if data["quarantined"] and data["status"] == "incomplete" else "resume"
        to_stdout(f"{killed}To {purpose}, run {continuing_command(Store(dataset))}.")


def _nights(address: str) -> list[dict[str, Any]]:
    """The nights at an address that is not a dataset; empty if there are none."""
    from factory.dataset.storage import Store
    from factory.dataset.stored_recipe import RECIPE

    store = Store(address)
    return [] if store.get(RECIPE) is not None else nights_of(store)


def state(dataset: str) -> dict[str, Any]:
    """The progress of a dataset as JSON data."""
    from factory.config.plan import Plan
    from factory.dataset import lease
    from factory.dataset.description import description
    from factory.dataset.progress_file import read_progress
    from factory.dataset.storage import Store
    from factory.dataset.stored_recipe import recipe_of
    from factory.dataset.totals import current_totals
    from factory.generation.reporter import quarantined

    store = Store(dataset)
    recipe = recipe_of(store)
    plan = Plan(recipe)
    data = description(recipe, plan, current_totals(store, plan))
    # As in the output of `generate`; dataset.json has had other names since the first format.
    data["fingerprint"], data["exhausted"] = data.pop("recipe"), data.pop("short")
    progress = read_progress(store)
    current, stale = progress.get("status"), lease.is_stale(store)
    if current not in _STATUSES:
        current = "initialized"
    if data["complete"]:
        current = "complete"
    elif stale or (stale is None and current in _ACTIVE):
        current = "stale"
    elif stale is False and current not in _ACTIVE:
        current = "running"  # it has started, but not written its progress yet
    elif current == "done":
        current = "incomplete"  # receipts were deleted since, or the dataset was extended and its run killed at once
    return data | {"status": current, "progress": progress, "quarantined": sorted(quarantined(store))}
