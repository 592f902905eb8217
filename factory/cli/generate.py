"""`factory generate`: from class names to verified shards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.files.strict_json import dumps

if TYPE_CHECKING:
    from factory.generation.run import RunSummary

Classes = Annotated[str | None, typer.Option(help='coco, voc, a file of names, or names: dog,cat,"traffic light".')]
Count = Annotated[int | None, typer.Option("--n", help="Accepted samples wanted.")]
Model = Annotated[
    str | None, typer.Option(help="stickers (embedded), a diffusers folder, a hub id, or a checkpoint file.")
]
Masks = Annotated[str | None, typer.Option(help="attention, detector, or the folder of a trained grounder.")]
Detector = Annotated[
    str | None, typer.Option(help="stickers (embedded), a folder, a hub id, torchvision:NAME or detectron2:CONFIG.")
]
Objects = Annotated[str | None, typer.Option(help='Objects per image with their shares: "1:0.5,2:0.5".')]
Prompts = Annotated[Path | None, typer.Option(help="File of prompts: per line a text, a tab, its classes.")]
Seed = Annotated[int | None, typer.Option(help="Another seed, another set.")]
Steps = Annotated[int | None, typer.Option(help="Steps of the solver.")]
Guidance = Annotated[float | None, typer.Option(help="Classifier-free guidance.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="Precision: float32, tf32 (float32 with faster products on a GPU), bfloat16, float16."),
]
Batch = Annotated[int | None, typer.Option(help="Images generated together.")]
MinConfidence = Annotated[
    float | None, typer.Option(help="Reject samples with a mask of a lower score, 0 to 1; none by default.")
]
Attempts = Annotated[int | None, typer.Option(help="Seeds tried for a sample before its place stays empty.")]
ShardSize = Annotated[int | None, typer.Option(help="Samples of a shard.")]
Workers = Annotated[int | None, typer.Option(help="Generating workers; as many as fit by default.")]
Gpus = Annotated[float | None, typer.Option(help="GPUs of a worker, also a fraction; 0 is the CPU.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join, host:port or auto; local by default.")]
Grace = Annotated[
    float | None, typer.Option(help="Seconds that shards under way may take after SIGTERM or Ctrl-C; 20 by default.")
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="Recipe file; options override it.")]
Force = Annotated[bool, typer.Option("--force", help="Take over from another driver that works on the dataset.")]
NO_FIELDS = ("recipe", "shards", "extend", "force", "as_json")
"""Options that are no field of a recipe."""
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def generate(
    shards: Annotated[str, typer.Option(help="Folder or URL (s3://, gs://) of the set; an unfinished one is resumed.")],
    classes: Classes = None,
    n: Count = None,
    model: Model = None,
    masks: Masks = None,
    detector: Detector = None,
    objects: Objects = None,
    prompts: Prompts = None,
    seed: Seed = None,
    steps: Steps = None,
    guidance: Guidance = None,
    dtype: Dtype = None,
    batch: Batch = None,
    min_confidence: MinConfidence = None,
    attempts: Attempts = None,
    shard_size: ShardSize = None,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
    address: Address = None,
    grace: Grace = None,
    recipe: RecipeFile = None,
    extend: Annotated[bool, typer.Option("--extend", help="Make a finished or unfinished set larger, to --n.")] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make a set of images with masks, or go on with one.

    The same command again resumes; the recipe is written beside the shards. Ctrl-C and SIGTERM
    finish the shards under way, for --grace seconds, and stop; what is done is kept.

    Example: factory generate --classes coco --n 1000 --shards out/

    Example: factory generate --classes dog,cat --n 500 --objects "1:0.5,2:0.5" --masks detector --shards pets/

    Example: factory generate --recipe out/recipe.yaml --shards again/

    Exit codes: 0 complete, 2 bad input, 3 some shards were given up (see quarantine/), 4 complete but for samples that
    no attempt filled, 75 temporary trouble, 130 and 143 interrupted: docs/exit-codes.md.
    """
    from factory.cli.options import assemble, open_store
    from factory.cli.view import watching
    from factory.generation.run import generate as run

    options = {key: value for key, value in locals().copy().items() if key not in NO_FIELDS}
    store = open_store(shards, recipe)
    chosen = assemble(recipe, store, options)
    with watching(quiet=as_json) as watch:
        summary = run(chosen, store, extend, watch, force)
    typer.echo(dumps(as_data(summary, shards)) if as_json else as_text(summary, shards))
    raise typer.Exit(summary.exit_code)


def as_data(summary: "RunSummary", where: str) -> dict[str, object]:
    """The summary for machines."""
    totals = summary.totals
    return {
        "shards": where,
        "fingerprint": summary.recipe.fingerprint(),
        "samples": totals.accepted,
        "wanted": summary.recipe.n,
        "short": totals.exhausted,
        "attempts": totals.attempts,
        "yield": round(totals.accepted / totals.attempts, 4) if totals.attempts else None,
        "rejected": totals.rejected,
        "bytes": totals.bytes,
        "seconds": summary.last.seconds,
        "quarantined": summary.last.quarantined,
        "lost_workers": summary.last.lost_workers,
        "exit_code": summary.exit_code,
    }


def as_text(summary: "RunSummary", where: str) -> str:
    """The summary for people."""
    totals, last = summary.totals, summary.last
    rate = totals.accepted / totals.attempts if totals.attempts else 0.0
    lines = [
        f"{totals.accepted} of {summary.recipe.n} samples in {totals.shards} shards at {where} "
        f"({totals.bytes / 1e6:.1f} MB), yield {rate:.1%}, {last.seconds:.0f} s.",
    ]
    if totals.rejected:
        lines.append("Rejected: " + ", ".join(f"{reason} {count}" for reason, count in totals.rejected.items()) + ".")
    if totals.exhausted:
        lines.append(f"{totals.exhausted} samples were not accepted in any attempt; their places stay empty.")
    if last.quarantined:
        lines.append(
            f"{len(last.quarantined)} shards were given up; their errors are in quarantine/. Run again to retry."
        )
    return "\n".join(lines)
