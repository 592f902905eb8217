"""`factory plan`: what `factory generate` would produce."""

import math
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory.cli import shared_options as option
from factory.cli.messages import to_stdout
from factory.errors import counted
from factory.files.strict_json import dumps

if TYPE_CHECKING:
    from factory.config.recipe import Recipe

_SHOWN = 10
_COUNTED = 100_000


def plan(
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
    recipe: option.RecipeFile = None,
    rate: Annotated[float | None, typer.Option(help="Samples per second of one worker, if known.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Generate two batches to estimate time and disk space.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of workers for the time estimate; 1 by default.")
    ] = None,
    as_json: option.AsJson = False,
) -> None:
    """Show what `factory generate` would produce, and estimate time and disk space.

    Prints the shards, the sampling settings of the model, the samples per class and the first prompts, after the checks
    that `factory generate` performs before it starts.

    Example: factory plan --classes coco --n 110000 --objects "1:0.5,2:0.5"

    Example: factory plan --classes coco --n 110000 --measure --workers 8

    Example: factory plan --recipe out/recipe.yaml --workers 8 --rate 2.5
    """
    options = {**locals(), "workers": None}  # this one belongs to the estimate, not to the recipe
    from factory.cli.options import assemble

    data = describe(assemble(recipe, None, options), rate, workers, measure)
    if as_json:
        to_stdout(dumps(data))
        return
    mark = data["fingerprint"][:12]
    to_stdout(
        f"{counted(data['n'], 'sample')} in {counted(data['shards_planned'], 'shard')} of up to {data['shard_size']}, "
        f"fingerprint {mark}."
    )
    to_stdout(_sampling(data["sampling"]))
    low, high = data["per_class_least"], data["per_class_most"]
    times = f"{low} to {high} times" if high != low else counted(low, "time")
    where = f"In the first {data['counted_samples']} samples, each" if data["counted_samples"] < data["n"] else "Each"
    of = f" of {data['classes']} classes" if data["classes"] > 1 else " class"
    to_stdout(f"{where}{of} appears {times}.")
    to_stdout("Example prompts:")
    for text in data["prompts"]:
        to_stdout(f"  {text}")
    to_stdout(cost(data))


def _sampling(data: dict[str, Any]) -> str:
    """How the model is sampled, as text: the values may be those of its card."""
    guidance = f"guidance {data['guidance']:g}" + (" on average" if data["guidance_schedule"] != "constant" else "")
    solver = "" if data["solver"] == "model" else f" of {data['solver']}"
    return f"{data['model']}: {counted(data['steps'], 'step')}{solver}, {guidance}, {data['dtype']}."


def cost(data: dict[str, Any]) -> str:
    """The estimate of time and disk space as text."""
    trial = data["trial"]
    if trial is not None and not trial["accepted"]:
        return f"None of the {trial['attempts']} measured images was accepted; `generate --n 8` shows the reasons."
    if not data["rate"]:
        return (
            "For an estimate of time and disk space, add --measure; for an estimate of time alone, give --rate, the "
            "samples per second of a worker."
        )
    time = _time(data["worker_hours"] / data["workers"])
    text = f"Time: {time} with {counted(data['workers'], 'worker')}, {data['worker_hours']:.2f} worker-hours"
    text += " (GPU-hours if a worker has one GPU)."
    if data["bytes"] is not None:
        text += f" Disk: {data['bytes'] / 1e6:.1f} MB."
    if trial is not None:
        text += (
            f" Measured on this machine: one worker made {trial['accepted']} samples from {trial['attempts']} images "
            f"in {trial['seconds']:.1f} s."
        )
    return text


def _time(hours: float) -> str:
    minutes = hours * 60
    if minutes >= 90:
        return f"{hours:.1f} hours"
    return f"{minutes:.1f} minutes" if minutes >= 1.5 else f"{minutes * 60:.1f} seconds"


def describe(recipe: "Recipe", rate: float | None, workers: int | None, measure: bool) -> dict[str, Any]:
    """The plan as JSON data. Classes are counted over at most 100,000 samples; they are balanced in every prefix.

    Raises UserError for everything that `generate` checks before it starts.
    """
    from dataclasses import asdict
    from itertools import islice

    from factory.config.plan import Plan
    from factory.errors import UserError
    from factory.generation.hardware import for_hardware
    from factory.generation.pin import pin_recipe
    from factory.generation.preflight import preflight
    from factory.generation.run import check_format

    if rate is not None and not 0 < rate < math.inf:
        raise UserError(f"--rate must be a number above 0, got {rate:g}.")
    if measure and rate is not None:
        raise UserError(
            f"--rate {rate:g} has no effect with --measure, which measures the rate; leave one of them out."
        )
    if workers is not None and rate is None and not measure:
        raise UserError(
            f"--workers {workers} has no effect without an estimate of the time; add --measure or --rate, or leave it "
            f"out."
        )
    workers = workers or 1
    check_format(recipe, "the plan")
    recipe = pin_recipe(recipe)
    preflight(recipe)
    recipe = for_hardware(recipe, None)
    expanded = Plan(recipe)
    counts = Counter(dict.fromkeys(recipe.vocabulary().names, 0))
    counts.update(expanded.class_totals(min(recipe.n, _COUNTED)))
    trial = None
    if measure:
        from factory.generation.estimate import estimate_run

        trial = estimate_run(recipe)
        rate = trial.rate
    samples = recipe.n * trial.accepted / trial.planned if trial else recipe.n  # the others are skipped
    return {
        "n": recipe.n,
        "shards_planned": len(expanded),
        "shard_size": recipe.shard_size,
        "fingerprint": recipe.fingerprint(),
        "sampling": recipe.generator.model_dump(mode="json"),
        "classes": len(counts),
        "counted_samples": min(recipe.n, _COUNTED),
        "per_class_least": min(counts.values()),
        "per_class_most": max(counts.values()),
        "per_class": dict(counts),
        "prompts": [sample.prompt.text for sample in islice(expanded.samples(), _SHOWN)],
        "workers": workers,
        "rate": rate,
        "bytes": round(samples * trial.bytes_per_sample) if trial else None,
        "worker_hours": samples / rate / 3600 if rate else None,
        "hours": samples / rate / 3600 / workers if rate else None,
        "trial": asdict(trial) if trial else None,
    }
