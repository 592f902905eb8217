"""`factory plan`: what `factory generate` would make, without making it."""

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory.cli.generate import (
    AsJson,
    Batch,
    Classes,
    Count,
    Guidance,
    Masks,
    Model,
    Objects,
    Prompts,
    RecipeFile,
    Seed,
    ShardSize,
    Steps,
)

if TYPE_CHECKING:
    from factory.recipe import Recipe

_SHOWN = 10
_COUNTED = 100_000
_PIXELS_PER_BYTE = 2.2
"""Measured on embedded samples: a pixel costs about 1/2.2 byte in image, labels and annotation together."""


def plan(
    classes: Classes = None,
    n: Count = None,
    model: Model = None,
    masks: Masks = None,
    objects: Objects = None,
    prompts: Prompts = None,
    seed: Seed = None,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = None,
    shard_size: ShardSize = None,
    recipe: RecipeFile = None,
    rate: Annotated[float | None, typer.Option(help="Images per second of a worker, for the estimate of time.")] = None,
    workers: Annotated[int, typer.Option(help="Workers, for the estimate of time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Show the shards, classes and prompts that a command would make, and what it would take.

    Example: factory plan --classes coco --n 110000 --objects "1:0.5,2:0.5"

    Example: factory plan --recipe out/recipe.yaml --workers 8 --rate 2.5
    """
    from factory.cli.options import assemble

    options = {
        k: v for k, v in locals().copy().items() if k not in ("recipe", "rate", "workers", "as_json", "assemble")
    }
    data = describe(assemble(recipe, None, options), rate, workers)
    if as_json:
        typer.echo(json.dumps(data))
        return
    mark = data["fingerprint"][:12]
    typer.echo(f"{data['n']} samples in {data['shards']} shards of {data['shard_size']}, fingerprint {mark}.")
    least, most = data["per_class_least"], data["per_class_most"]
    typer.echo(f"Each of {data['classes']} classes {least}" + (f" to {most}" if most != least else "") + " times.")
    typer.echo("Prompts such as:")
    for text in data["prompts"]:
        typer.echo(f"  {text}")
    hours = (
        f"{data['hours']:.2f} hours with {workers} workers ({data['worker_hours']:.2f} worker-hours)" if rate else None
    )
    typer.echo(
        f"Disk: about {data['bytes'] / 1e6:.0f} MB. Time: {hours or 'give --rate, images per second of a worker'}."
    )


def describe(recipe: "Recipe", rate: float | None, workers: int) -> dict[str, Any]:
    """The plan as plain data. Classes are counted over at most 100,000 samples; the balance holds at every point."""
    from itertools import islice

    from factory.errors import UserError
    from factory.plan import Plan

    if workers < 1 or (rate is not None and rate <= 0):
        raise UserError(f"--workers is at least 1 and --rate over 0, got {workers} and {rate}.")
    expanded = Plan(recipe)
    counts = Counter(dict.fromkeys(recipe.vocabulary().names, 0))
    for sample in islice(expanded.samples(), _COUNTED):
        counts.update(sample.prompt.classes)
    side = (recipe.generator.width or 512) * (recipe.generator.height or 512)
    if recipe.generator.model == "stickers" and not recipe.generator.width:
        side = 128 * 128
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
        "bytes": int(recipe.n * side / _PIXELS_PER_BYTE),
        "worker_hours": recipe.n / rate / 3600 if rate else None,
        "hours": recipe.n / rate / 3600 / workers if rate else None,
    }
