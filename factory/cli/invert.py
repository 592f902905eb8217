"""`factory invert`: real labelled images as training data of a grounder."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from factory.cli.generate import (
    Address,
    AsJson,
    Batch,
    Force,
    Gpus,
    Grace,
    Model,
    ShardSize,
    Workers,
    as_data,
    as_text,
)
from factory.files.strict_json import dumps


def invert(
    shards: Annotated[str, typer.Option(help="Folder or URL (s3://, gs://) of the set; an unfinished one is resumed.")],
    root: Annotated[Path, typer.Option(help="VOC's folder (VOCdevkit/VOC2012), or COCO's folder of images.")],
    dataset: Annotated[Literal["voc", "coco"], typer.Option(help="How the images are labelled on disk.")] = "voc",
    annotations: Annotated[Path | None, typer.Option(help="COCO's instances_*.json.")] = None,
    image_set: Annotated[str, typer.Option(help="VOC's image set.")] = "train",
    classes: Annotated[str | None, typer.Option(help="The vocabulary; that of the dataset by default.")] = None,
    split: Annotated[
        str, typer.Option(help="Take only images without a class that this split leaves unseen; `all` takes every one.")
    ] = "all",
    n: Annotated[int | None, typer.Option("--n", min=1, help="At most so many images; all by default.")] = None,
    method: Annotated[
        Literal["ddim", "noise"], typer.Option(help="Invert step by step, or add noise: one U-Net call.")
    ] = "ddim",
    inversion_steps: Annotated[int, typer.Option(min=2, max=1000, help="Steps to noise, and back.")] = 50,
    timestep: Annotated[int, typer.Option(min=0, max=999, help="Noise level, of 1000, of the features.")] = 80,
    max_classes: Annotated[int, typer.Option(min=1, max=8, help="Images with more classes are left out.")] = 3,
    min_area: Annotated[float, typer.Option(min=0, max=1, help="Smaller classes are not named in the prompt.")] = 0.01,
    model: Model = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe file whose generator part is taken: model, precision, memory layout.")
    ] = None,
    batch: Batch = None,
    shard_size: ShardSize = None,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
    address: Address = None,
    grace: Grace = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Bring real labelled images back to noise, and keep the latents of their features with their true masks.

    The set is one of `bootstrap-oracle`'s kind: `train-grounder` takes it alone or with others. The same command again
    resumes. Each sample tells the PSNR of its way to noise and back.

    Example: factory invert --root VOCdevkit/VOC2012 --split 1 --shards inverted/

    Exit codes: those of `factory generate`.
    """
    from factory.cli.options import open_store
    from factory.cli.view import watching
    from factory.config.recipe import load_recipe
    from factory.errors import UserError
    from factory.generation.inversion_recipe import RealOptions, mean_psnr, recipe_of_folder
    from factory.generation.run import generate as run

    options = RealOptions(
        dataset=dataset,
        root=root,
        image_set=image_set,
        annotations=annotations,
        classes=classes or dataset,
        split=split,
        most=n,
        method=method,
        steps=inversion_steps,
        timestep=timestep,
        max_classes=max_classes,
        min_area=min_area,
    )
    generator = load_recipe(recipe).get("generator", {}) if recipe else {}
    if not isinstance(generator, dict):
        raise UserError(f"{recipe} has no generator part: under `generator:` there are its fields, as `model:`.")
    given = {"generator": generator, "model": model, "batch": batch, "shard_size": shard_size}
    engine = {"workers": workers, "gpus_per_worker": gpus_per_worker, "address": address, "grace": grace}
    chosen, left_out = recipe_of_folder(options, given, engine, lambda text: typer.echo(text, err=True))
    typer.echo(f"{chosen.n} images of {root}; {left_out} left out.", err=True)
    store = open_store(shards, recipe)
    with watching(quiet=as_json) as watch:
        summary = run(chosen, store, False, watch, force)
    psnr = mean_psnr(store, summary.recipe)
    if as_json:
        typer.echo(dumps(as_data(summary, shards) | {"psnr": psnr, "left_out": left_out}))
    else:
        typer.echo(f"{as_text(summary, shards)}\nMean PSNR after the way to noise and back: {psnr:.2f} dB.")
    raise typer.Exit(summary.exit_code)
