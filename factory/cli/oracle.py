"""`factory bootstrap-oracle`: training data of a grounder, masks by a detector, seen classes only."""

from typing import Annotated

import typer

from factory.cli.generate import (
    NO_FIELDS,
    Address,
    AsJson,
    Batch,
    Count,
    Detector,
    Dtype,
    Force,
    Gpus,
    Grace,
    Guidance,
    Model,
    Objects,
    RecipeFile,
    Seed,
    ShardSize,
    Steps,
    Workers,
    as_data,
    as_text,
)
from factory.files.strict_json import dumps

_TIMESTEP = 80


def bootstrap_oracle(
    shards: Annotated[str, typer.Option(help="Folder or URL (s3://, gs://) of the set; an unfinished one is resumed.")],
    classes: Annotated[str | None, typer.Option(help="voc or coco: a vocabulary with splits.")] = None,
    split: Annotated[
        str | None, typer.Option(help="voc: 1, 2, 3, zs3; coco: 1, 2, 3; or a file of unseen classes.")
    ] = None,
    n: Count = None,
    model: Model = None,
    detector: Detector = None,
    timestep: Annotated[
        int | None, typer.Option(min=0, max=999, help="Noise level, of 1000, at which features are read.")
    ] = None,
    objects: Objects = None,
    seed: Seed = None,
    steps: Steps = None,
    guidance: Guidance = None,
    dtype: Dtype = None,
    batch: Batch = None,
    shard_size: ShardSize = None,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
    detectors: Annotated[
        int | None, typer.Option(help="Actors of the detector pool; 0 runs it inside each worker.")
    ] = None,
    gpus_per_detector: Annotated[float | None, typer.Option(help="GPUs of a detector actor, also a fraction.")] = None,
    address: Address = None,
    grace: Grace = None,
    recipe: RecipeFile = None,
    extend: Annotated[bool, typer.Option("--extend", help="Make the set larger, to --n.")] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make images of seen classes with oracle masks: what `factory train-grounder` learns from.

    The detector's masks of each class are united; a class that it does not find is left out; unsure pixels are 255. The
    same command again resumes, and `factory verify` checks the set, as for every other.

    Example: factory bootstrap-oracle --classes voc --split 1 --n 10000 --shards oracle/

    Exit codes: those of `factory generate`.
    """
    from factory.cli.options import assemble, open_store
    from factory.cli.view import watching
    from factory.errors import UserError
    from factory.generation.run import generate as run

    options = {key: value for key, value in locals().copy().items() if key not in NO_FIELDS}
    store = open_store(shards, recipe)
    if split is not None:
        options |= {
            "masks": "detector",
            "capture": "sampling",
            "timesteps": [_TIMESTEP if timestep is None else timestep],
            "objects": objects or "1:0.5,2:0.5",
        }
    elif recipe is None and (classes is not None or n is not None):
        raise UserError("which classes are seen? Give --split, as in --classes voc --split 1.")
    elif timestep is not None:
        options["timesteps"] = [timestep]
    chosen = assemble(recipe, store, options)
    if chosen.oracle is None:
        raise UserError("the recipe is that of a set of images with masks; add --split to make it an oracle.")
    with watching(quiet=as_json) as watch:
        summary = run(chosen, store, extend, watch, force)
    typer.echo(dumps(as_data(summary, shards)) if as_json else as_text(summary, shards))
    raise typer.Exit(summary.exit_code)
