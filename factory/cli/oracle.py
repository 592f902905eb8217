"""`factory bootstrap-oracle`: training data for a grounder, with a detector's masks of seen classes."""

from typing import Annotated

import typer

from factory.cli import shared_options as option
from factory.cli.generate import as_data, as_text
from factory.cli.messages import to_stdout
from factory.files.strict_json import dumps


def bootstrap_oracle(
    out: option.DatasetOut,
    classes: Annotated[
        str | None, typer.Option(help="coco (default) or voc; with a split file, any classes as in `factory generate`.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split of the classes, whose seen classes are used: 1, 2, 3 or (voc only) zs3, or a file with one "
            "unseen class per line; required for a new dataset without --recipe."
        ),
    ] = None,
    n: option.Count = None,
    model: option.Model = None,
    lora: option.Lora = None,
    detector: option.Detector = None,
    noise_level: option.NoiseLevel = None,
    objects: option.OracleObjects = None,
    cooccurrence: option.Cooccurrence = None,
    prompt_style: option.PromptStyle = None,
    seed: option.Seed = None,
    steps: option.SolverSteps = None,
    guidance: option.Guidance = None,
    guidance_schedule: option.GuidanceScales = None,
    dtype: option.Dtype = None,
    batch: option.Batch = None,
    shard_size: option.ShardSize = None,
    workers: option.Workers = None,
    gpus_per_worker: option.GpusPerWorker = None,
    detectors: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1024,
            help="Workers of the detector pool; 0 (default) runs the detector in each generating worker.",
        ),
    ] = None,
    gpus_per_detector: Annotated[
        float | None,
        typer.Option(min=0, max=16, help="GPUs per worker of the detector pool, which may be a fraction."),
    ] = None,
    address: option.Address = None,
    grace: option.Grace = None,
    recipe: option.RecipeFile = None,
    extend: option.Extend = False,
    force: option.Force = False,
    as_json: option.AsJson = False,
) -> None:
    """Generate the training data of a grounder: images of seen classes with the masks of a detector.

    The masks of the detector are merged per class. Classes that it does not find are omitted from a sample, and pixels
    of uncertain detections are marked 255. Rerun the same command to resume; `factory verify` checks the result like
    any other dataset.

    Example: factory bootstrap-oracle --classes voc --split 1 --n 10000 --shards oracle/

    Exit codes: those of `factory generate`.
    """
    options = dict(locals())  # of which `assemble` reads those that set a field of the recipe
    from factory.cli.options import assemble, open_store
    from factory.cli.view import watching
    from factory.config.unseen_words import check_no_unseen_classes
    from factory.errors import UserError
    from factory.generation.run import generate as run

    store = open_store(out, recipe)
    defaults = {}
    if split is not None:
        options |= {"masks": "detector"}
        defaults = {"objects": {1: 0.5, 2: 0.5}}
    elif recipe is None and (classes is not None or n is not None):
        raise UserError("--split is required to select the seen classes; for example --classes voc --split 1.")
    merged = assemble(recipe, store, options, defaults)
    if merged.oracle is None and recipe is None:  # it is that of the dataset to resume
        raise UserError(f"{out} is a dataset, but not an oracle dataset; give another --shards.")
    if merged.oracle is None:
        raise UserError("the recipe is not that of an oracle dataset; add --split.")
    check_no_unseen_classes(merged)
    with watching(quiet=as_json) as watch:
        summary = run(merged, store, extend, watch, force)
    to_stdout(dumps(as_data(summary, out)) if as_json else as_text(summary, out))
    raise typer.Exit(summary.exit_code)
