"""`factory stickers`: render scenes, and train and evaluate the embedded models."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from factory.cli.messages import to_stderr, to_stdout
from factory.cli.shared_options import MAX_SEED, AsJson, Device, Threads
from factory.cli.sticker_evaluation import evaluate, evaluate_autoencoder
from factory.config.stickers import STICKERS, check_pipeline
from factory.errors import UserError, counted
from factory.files.strict_json import dumps

app = typer.Typer(
    help="Render scenes, and train and evaluate the embedded models.",
    no_args_is_help=True,
)


@app.command()
def render(
    out: Annotated[Path, typer.Option(help="Folder to write: new, empty, or from an earlier run of the same command.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Number of images.")] = 1000,
    classes: Annotated[
        str, typer.Option(help='coco, voc, a file with one class per line, or names: dog,cat,"traffic light".')
    ] = "voc",
    style: Annotated[
        Literal["train", "drawn", "held-out"],
        typer.Option(
            help="train: the styles of the training data; drawn: that of the text-to-image model; held-out: a style "
            "that no model was trained on."
        ),
    ] = "train",
    background: Annotated[
        Literal["all", "model", "gradient", "texture", "stripes", "clutter"],
        typer.Option(
            help="all: every kind, about equally often; model: as in the training data of the text-to-image model, "
            "mostly gradients; otherwise only this kind."
        ),
    ] = "all",
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side of the images in pixels.")] = 128,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the images.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Render labelled scenes as a PASCAL VOC folder.

    Example: factory stickers render --classes voc --n 1000 --style held-out --out VOCstickers
    """
    from factory.cli.progress import progress_bar
    from factory.config.class_option import parse_classes
    from factory.stickers.atlas import DRAWN_STYLES, HELD_OUT_STYLE, TRAIN_STYLES
    from factory.stickers.backgrounds import kind_shares
    from factory.stickers.voc_folder import write_voc_folder

    styles = {"train": TRAIN_STYLES, "drawn": DRAWN_STYLES, "held-out": (HELD_OUT_STYLE,)}[style]
    vocabulary = parse_classes(classes)
    with progress_bar("rendering", n, quiet=as_json) as advance:
        write_voc_folder(out, vocabulary, n, styles, size, seed, advance, kind_shares(background))
    if as_json:
        to_stdout(dumps({"out": str(out), "images": n, "classes": list(vocabulary.names), "styles": list(styles)}))
    else:
        to_stdout(f"{counted(n, 'image')} of {counted(len(vocabulary.names), 'class', 'classes')} in {out}")


@app.command()
def train(
    part: Annotated[
        Literal["autoencoder", "diffusion", "turbo", "detector", "judge"],
        typer.Argument(
            metavar="MODEL",
            help="autoencoder, diffusion, turbo, detector or judge (a second detector); the models that it needs come "
            "from --out, or else from the package.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the runs, with one subfolder per model.")] = Path("runs"),
    steps: Annotated[
        int | None,
        typer.Option(
            "--train-steps", "--steps", min=1, help="Optimizer steps; by default, as for the models in the package."
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Batch size; by default, as for the models in the package.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Peak learning rate; by default, as for the models in the package.")
    ] = None,
    device: Device = "cpu",
    threads: Threads = 0,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the training.")] = 0,
    start: Annotated[Path | None, typer.Option(help="Folder of a trained model with the initial weights.")] = None,
) -> None:
    """Train one of the embedded models.

    Rerun the same command to resume after an interruption.

    Example: factory stickers train detector --out runs --steps 2000
    """
    from factory.hf_logging import quiet_model_libraries
    from factory.training.devices import chosen_device
    from factory.training.options import CHECKPOINT, check_run_folder

    for folder in (out, out / part):
        check_run_folder(folder)
    # A run that is resumed no longer needs its start. The first stage of turbo is `turbo-8`.
    if start is not None and not start.is_dir() and not any(out.glob(f"{part}*/{CHECKPOINT}")):
        raise UserError(f"--start must be the folder of a trained model, got {start}.")
    quiet_model_libraries()
    from factory.stickers.recipes import run_recipe

    run_recipe(
        part,
        out,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        device=chosen_device(device),
        threads=threads,
        seed=seed,
        start=start,
        report=to_stderr,
    )


@app.command()
def draw(
    classes: Annotated[
        str, typer.Option(help='coco, voc, a file with one class per line, or names: dog,cat,"traffic light".')
    ] = "coco",
    out: Annotated[Path, typer.Option(help="Image file to write.")] = Path("demo/stickers.png"),
    n: Annotated[int, typer.Option("--n", min=1, max=400, help="Number of images.")] = 40,
    pairs: Annotated[bool, typer.Option("--pairs", help="Draw two classes per image.")] = False,
    model: Annotated[str, typer.Option(help="stickers, stickers-turbo, or a diffusers folder like them.")] = STICKERS,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the images.")] = 0,
) -> None:
    """Draw images with the embedded text-to-image model next to the masks of the embedded detector.

    Example: factory stickers draw --classes dog,cat,bus --n 24 --out dogs.png
    """
    from factory.config.class_option import parse_classes
    from factory.files.paths import check_image_file
    from factory.hf_logging import quiet_model_libraries

    vocabulary = parse_classes(classes)
    check_image_file(out, "--out")
    check_pipeline(model, "--model")
    quiet_model_libraries()
    from factory.cli.progress import progress_bar
    from factory.stickers.contact_sheet import contact_sheet

    with progress_bar("drawing", n) as advance:
        found = contact_sheet(vocabulary, n, 2 if pairs else 1, seed, out, model, advance)
    to_stdout(f"{counted(n, 'image')}, all prompted classes found in {found}; left: image, right: masks.")
    to_stdout(str(out))


app.command()(evaluate)
app.command("evaluate-autoencoder")(evaluate_autoencoder)
