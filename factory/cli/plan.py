"""`factory plan`: what `factory generate` would make, without making it."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory.cli.generate import (
    AsJson,
    Attempts,
    Batch,
    Classes,
    Count,
    Detector,
    Dtype,
    Guidance,
    Masks,
    MinConfidence,
    Model,
    Objects,
    Prompts,
    RecipeFile,
    Seed,
    ShardSize,
    Steps,
)
from factory.files.strict_json import dumps

if TYPE_CHECKING:
    from factory.config.recipe import Recipe

_SHOWN = 10
_COUNTED = 100_000


def plan(
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
    recipe: RecipeFile = None,
    rate: Annotated[float | None, typer.Option(help="Samples per second of a worker, where you know it.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Make some samples to estimate time and disk.")] = False,
    workers: Annotated[int, typer.Option(help="Workers, for the estimate of time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Show the shards, classes and prompts that a command would make, and what it would take.

    Example: factory plan --classes coco --n 110000 --objects "1:0.5,2:0.5"

    Example: factory plan --classes coco --n 110000 --measure --workers 8

    Example: factory plan --recipe out/recipe.yaml --workers 8 --rate 2.5
    """
    from factory.cli.options import assemble

    other = ("recipe", "rate", "measure", "workers", "as_json", "assemble")
    options = {key: value for key, value in locals().copy().items() if key not in other}
    data = describe(assemble(recipe, None, options), rate, workers, measure)
    if as_json:
        typer.echo(dumps(data))
        return
    mark = data["fingerprint"][:12]
    typer.echo(f"{data['n']} samples in {data['shards']} shards of {data['shard_size']}, fingerprint {mark}.")
    least, most = data["per_class_least"], data["per_class_most"]
    typer.echo(f"Each of {data['classes']} classes {least}" + (f" to {most}" if most != least else "") + " times.")
    typer.echo("Prompts such as:")
    for text in data["prompts"]:
        typer.echo(f"  {text}")
    typer.echo(cost(data))


def cost(data: dict[str, Any]) -> str:
    """A sentence about time and disk."""
    trial = data["trial"]
    if trial is not None and not trial["accepted"]:
        return f"None of the trial's {trial['attempts']} images was accepted; `generate --n 8` shows why."
    if not data["rate"]:
        return (
            "Time and disk: --measure makes two batches to estimate them, --rate takes samples per second of a worker."
        )
    worker_hours, workers = data["worker_hours"], data["workers"]
    told = f"Time: {worker_hours / workers:.2f} hours with {workers} workers, {worker_hours:.2f} worker-hours"
    told += " (GPU-hours where a worker has one GPU)."
    if data["bytes"] is not None:
        told += f" Disk: {data['bytes'] / 1e6:.1f} MB."
    if trial is not None:
        told += (
            f" Measured on this machine: {trial['accepted']} samples of {trial['attempts']} images in "
            f"{trial['seconds']:.1f} s by one worker."
        )
    return told


def describe(recipe: "Recipe", rate: float | None, workers: int, measure: bool = False) -> dict[str, Any]:
    """The plan as plain data. Classes are counted over at most 100,000 samples; the balance holds at every point.

    Raises UserError for what `generate` would refuse before it starts.
    """
    from dataclasses import asdict
    from itertools import islice

    from factory.config.plan import Plan
    from factory.errors import UserError
    from factory.generation.pin import pin_recipe
    from factory.generation.preflight import preflight

    if workers < 1 or (rate is not None and rate <= 0):
        raise UserError(f"--workers is at least 1 and --rate over 0, got {workers} and {rate}.")
    recipe = pin_recipe(recipe)
    preflight(recipe)
    expanded = Plan(recipe)
    counts = Counter(dict.fromkeys(recipe.vocabulary().names, 0))
    for sample in islice(expanded.samples(), _COUNTED):
        counts.update(sample.prompt.classes)
    trial = None
    if measure:
        from factory.generation.estimate import estimate_run

        trial = estimate_run(recipe)
        rate = rate or trial.rate
    return {
        "n": recipe.n,
        "shards": len(expanded),
        "shard_size": recipe.shard_size,
        "fingerprint": recipe.fingerprint(),
        "classes": len(counts),
        "counted_samples": min(recipe.n, _COUNTED),
        "per_class_least": min(counts.values()),
        "per_class_most": max(counts.values()),
        "per_class": dict(counts),
        "prompts": [sample.prompt.text for sample in islice(expanded.samples(), _SHOWN)],
        "workers": workers,
        "rate": rate,
        "bytes": round(recipe.n * trial.bytes_per_sample) if trial else None,
        "worker_hours": recipe.n / rate / 3600 if rate else None,
        "hours": recipe.n / rate / 3600 / workers if rate else None,
        "trial": asdict(trial) if trial else None,
    }
