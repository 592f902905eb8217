"""`factory generate`: a dataset from class names."""

from typing import TYPE_CHECKING

import typer

from factory.cli import shared_options as option
from factory.cli.messages import to_stdout
from factory.errors import counted, tally
from factory.files.strict_json import dumps

if TYPE_CHECKING:
    from factory.generation.run import RunSummary


def generate(
    out: option.DatasetOut,
    classes: option.Classes = None,
    n: option.Count = None,
    model: option.Model = None,
    lora: option.Lora = None,
    masks: option.Masks = None,
    detector: option.Detector = None,
    objects: option.Objects = None,
    cooccurrence: option.Cooccurrence = None,
    prompts: option.Prompts = None,
    prompt_style: option.PromptStyle = None,
    seed: option.Seed = None,
    steps: option.SolverSteps = None,
    guidance: option.Guidance = None,
    guidance_schedule: option.GuidanceScales = None,
    dtype: option.Dtype = None,
    batch: option.Batch = None,
    min_confidence: option.MinConfidence = None,
    attempts: option.Attempts = None,
    shard_size: option.ShardSize = None,
    workers: option.Workers = None,
    gpus_per_worker: option.GpusPerWorker = None,
    address: option.Address = None,
    grace: option.Grace = None,
    recipe: option.RecipeFile = None,
    extend: option.Extend = False,
    force: option.Force = False,
    as_json: option.AsJson = False,
) -> None:
    """Generate a dataset of images with masks, or resume one.

    Rerun the same command to resume from the last committed shard; the recipe is stored with the dataset. After Ctrl-C
    or SIGTERM, shards in progress have --grace seconds to finish; committed shards are kept.

    Example: factory generate --classes coco --n 1000 --shards out/

    Example: factory generate --classes dog,cat --n 500 --objects "1:0.5,2:0.5" --masks detector --shards pets/

    Example: factory generate --recipe out/recipe.yaml --shards again/

    Exit codes: 0 complete, 2 invalid input, 3 some shards failed repeatedly (see quarantine/) or no sample was
    accepted, 4 complete, but some samples were rejected in every attempt, 75 temporary failure, 130 or 143 interrupted.
    See docs/exit-codes.md.
    """
    options = dict(locals())  # of which `assemble` reads those that set a field of the recipe
    from factory.cli.options import assemble, open_store
    from factory.cli.view import watching
    from factory.generation.run import generate as run

    store = open_store(out, recipe)
    merged = assemble(recipe, store, options)
    with watching(quiet=as_json) as watch:
        summary = run(merged, store, extend, watch, force)
    to_stdout(dumps(as_data(summary, out)) if as_json else as_text(summary, out))
    raise typer.Exit(summary.exit_code)


def as_data(summary: "RunSummary", out: str) -> dict[str, object]:
    """The summary as JSON data."""
    totals = summary.totals
    return {
        "dataset": out,
        "fingerprint": summary.recipe.fingerprint(),
        "samples": totals.accepted,
        "n": summary.recipe.n,
        "exhausted": totals.exhausted,
        "attempts": totals.attempts,
        "yield": round(totals.accepted / totals.attempts, 4) if totals.attempts else None,
        "rejected": totals.rejected,
        "bytes": totals.bytes,
        "seconds": summary.last.seconds,
        "quarantined": summary.last.quarantined,
        "lost_workers": summary.last.lost_workers,
        "exit_code": summary.exit_code,
    }


def as_text(summary: "RunSummary", out: str) -> str:
    """The summary as text."""
    totals, last = summary.totals, summary.last
    rate = totals.accepted / totals.attempts if totals.attempts else 0.0
    lines = [
        f"{totals.accepted} of {summary.recipe.n} samples in {counted(totals.shards, 'shard')} at {out} "
        f"({totals.bytes / 1e6:.1f} MB), yield {rate:.1%}, {last.seconds:.0f} s.",
    ]
    if totals.rejected:
        lines.append(f"Rejected: {tally(totals.rejected)}.")
    if summary.is_empty:
        lines.append(
            "Every sample was rejected in every attempt, by the filters named above. Relax these filters in a recipe, "
            "or change the prompts, and generate into another folder."
        )
    elif totals.exhausted:
        skipped = counted(totals.exhausted, "sample was", "samples were")
        lines.append(f"{skipped} rejected in every attempt and skipped.")
    if last.quarantined:
        lines.append(
            f"{counted(len(last.quarantined), 'shard')} failed repeatedly; the errors are in quarantine/. Rerun the "
            f"same command to retry."
        )
    if summary.lost:
        lines.append(f"{summary.lost_text} Rerun the same command to generate the missing samples again.")
    return "\n".join(lines)
