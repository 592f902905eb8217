"""`factory bootstrap-oracle`: training data for a grounder, with a detector's masks of seen classes."""

from typing import Annotated

import typer

from factory.cli.generate import NO_FIELDS, as_data, as_text
from factory.cli.shared_options import (
    Address,
    AsJson,
    Batch,
    Cooccurrence,
    Count,
    DatasetOut,
    Detector,
    Dtype,
    Extend,
    Force,
    GpusPerWorker,
    Grace,
    Guidance,
    Model,
    Objects,
    PromptStyle,
    RecipeFile,
    Seed,
    ShardSize,
    SolverSteps,
    Workers,
)
from factory.files.strict_json import dumps

_TIMESTEP = 80


def bootstrap_oracle(
    out: DatasetOut,
    classes: Annotated[str | None, typer.Option(help="voc or coco, the vocabularies with splits.")] = None,
    split: Annotated[
        str | None, typer.Option(help="1, 2, 3 or (voc only) zs3, or a file with one unseen class per line.")
    ] = None,
    n: Count = None,
    model: Model = None,
    detector: Detector = None,
    timestep: Annotated[
        int | None, typer.Option(min=0, max=999, help="Noise level, of 1000, at which features are captured.")
    ] = None,
    objects: Objects = None,
    cooccurrence: Cooccurrence = None,
    prompt_style: PromptStyle = None,
    seed: Seed = None,
    steps: SolverSteps = None,
    guidance: Guidance = None,
    dtype: Dtype = None,
    batch: Batch = None,
    shard_size: ShardSize = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    detectors: Annotated[
        int | None, typer.Option(help="Actors of the detector pool; 0 runs it inside each worker.")
    ] = None,
    gpus_per_detector: Annotated[float | None, typer.Option(help="GPUs per detector actor, may be fractional.")] = None,
    address: Address = None,
    grace: Grace = None,
    recipe: RecipeFile = None,
    extend: Extend = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Generate images of seen classes with a detector's masks: the training data for `factory train-grounder`.

    The detector's masks are merged per class; classes that it does not find are left out; uncertain pixels are 255.
    Rerun the same command to resume; `factory verify` checks the result like any other dataset.

    Example: factory bootstrap-oracle --classes voc --split 1 --n 10000 --shards oracle/

    Exit codes: those of `factory generate`.
    """
    from factory.cli.options import assemble, open_store
    from factory.cli.view import watching
    from factory.errors import UserError
    from factory.generation.run import generate as run

    options = {key: value for key, value in locals().copy().items() if key not in NO_FIELDS}
    store = open_store(out, recipe)
    if split is not None:
        options |= {
            "masks": "detector",
            "capture": "sampling",
            "timesteps": [_TIMESTEP if timestep is None else timestep],
            "objects": objects or "1:0.5,2:0.5",
        }
    elif recipe is None and (classes is not None or n is not None):
        raise UserError("--split is required to tell which classes are seen; for example --classes voc --split 1.")
    elif timestep is not None:
        options["timesteps"] = [timestep]
    merged = assemble(recipe, store, options)
    if merged.oracle is None:
        raise UserError("the recipe is for an ordinary dataset; add --split to make an oracle from it.")
    with watching(quiet=as_json) as watch:
        summary = run(merged, store, extend, watch, force)
    typer.echo(dumps(as_data(summary, out)) if as_json else as_text(summary, out))
    raise typer.Exit(summary.exit_code)
