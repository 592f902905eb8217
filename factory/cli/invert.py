"""`factory invert`: training data for a grounder from real labelled images."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from factory.cli import shared_options as option
from factory.cli.generate import as_data, as_text
from factory.cli.messages import to_stderr, to_stdout
from factory.files.strict_json import dumps


def invert(
    out: option.DatasetOut,
    real: Annotated[
        Path,
        typer.Option(
            "--real",
            "--root",
            help="Labelled images: a PASCAL VOC folder (VOCdevkit/VOC2012) or a folder of COCO images.",
        ),
    ],
    layout: Annotated[
        Literal["voc", "coco"], typer.Option("--layout", "--dataset", help="Layout of the labelled folder.")
    ] = "voc",
    annotations: Annotated[
        Path | None, typer.Option(help="COCO annotation file (instances_*.json), for --layout coco.")
    ] = None,
    real_set: Annotated[
        str | None,
        typer.Option("--real-set", "--image-set", help="Image set of the PASCAL VOC folder; train by default."),
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Vocabulary; by default, that of --layout.")] = None,
    split: Annotated[
        str,
        typer.Option(
            help="Use only images without unseen classes: those of this split, or of a file with one per line; `all` "
            "uses every image."
        ),
    ] = "all",
    n: Annotated[int | None, typer.Option("--n", min=1, help="Maximum number of images; all by default.")] = None,
    method: Annotated[
        Literal["ddim", "noise"], typer.Option(help="DDIM inversion, or noise added to the encoded image.")
    ] = "ddim",
    inversion_steps: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=1000,
            help="DDIM steps of the inversion, and of the reconstruction, for --method ddim; 50 by default.",
        ),
    ] = None,
    noise_level: option.NoiseLevel = None,
    max_classes: Annotated[int, typer.Option(min=1, max=8, help="Skip images with more classes than this.")] = 3,
    min_area: Annotated[
        float,
        typer.Option(min=0, max=1, help="Leave classes that cover a smaller share of the image out of the prompt."),
    ] = 0.01,
    model: option.Model = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe file; only its sections `generator` and `store` are used.")
    ] = None,
    batch: option.Batch = None,
    shard_size: option.ShardSize = None,
    workers: option.Workers = None,
    gpus_per_worker: option.GpusPerWorker = None,
    address: option.Address = None,
    grace: option.Grace = None,
    force: option.Force = False,
    as_json: option.AsJson = False,
) -> None:
    """Turn labelled real images into training data of a grounder, by inverting them to noise.

    The latents are stored with the labels. The result is a dataset in the format of `bootstrap-oracle`;
    `train-grounder` accepts it alone or with others. Rerun the same command to resume. Each sample records the PSNR of
    its reconstruction.

    Example: factory invert --real VOCdevkit/VOC2012 --split 1 --shards inverted/

    Exit codes: those of `factory generate`.
    """
    from factory.cli.options import open_store
    from factory.cli.view import watching
    from factory.config.recipe import load_recipe
    from factory.errors import UserError, counted
    from factory.generation.inversion_recipe import RealOptions, recipe_of_folder
    from factory.generation.reconstruction import mean_psnr
    from factory.generation.run import generate as run

    options = RealOptions(
        dataset=layout,
        root=real,
        image_set=real_set,
        annotations=annotations,
        classes=classes or layout,
        split=split,
        max_images=n,
        method=method,
        steps=inversion_steps,
        noise_level=noise_level,
        max_classes=max_classes,
        min_area=min_area,
    )
    generator = load_recipe(recipe).get("generator", {}) if recipe else {}
    if not isinstance(generator, dict):
        raise UserError(f"{recipe}: `generator:` must be a section with fields such as `model:`.")
    overrides = {"generator": generator, "model": model, "batch": batch, "shard_size": shard_size}
    engine = {"workers": workers, "gpus_per_worker": gpus_per_worker, "address": address, "grace": grace}
    store = open_store(out, recipe)
    inversion, skipped = recipe_of_folder(options, overrides, engine, to_stderr)
    to_stderr(f"{counted(inversion.n, 'image')} of {real}; {skipped} skipped.")
    with watching(quiet=as_json) as watch:
        summary = run(inversion, store, False, watch, force, labels_checked=True)
    psnr = mean_psnr(store, summary.recipe)
    if as_json:
        to_stdout(dumps(as_data(summary, out) | {"psnr": psnr, "skipped": skipped}))
    else:
        mean = "" if psnr != psnr else f"\nMean PSNR of the reconstructions: {psnr:.2f} dB."
        to_stdout(as_text(summary, out) + mean)
    raise typer.Exit(summary.exit_code)
