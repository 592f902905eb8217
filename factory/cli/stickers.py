"""`factory stickers`: the embedded world — render scenes, train its models, measure them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from factory.files.strict_json import dumps

app = typer.Typer(
    help="The sticker world: the small models that are shipped, how they were trained and how good they are.",
    no_args_is_help=True,
)


class Style(StrEnum):
    """Which art styles to draw with."""

    train = "train"
    drawn = "drawn"
    held_out = "held-out"


class ModelName(StrEnum):
    """The model to train."""

    autoencoder = "autoencoder"
    diffusion = "diffusion"
    turbo = "turbo"
    detector = "detector"
    judge = "judge"


@app.command()
def render(
    out: Annotated[Path, typer.Option(help="Folder to write; new, empty, or an earlier run of the same command.")],
    n: Annotated[int, typer.Option("--n", help="Number of images.")] = 1000,
    classes: Annotated[
        str, typer.Option(help='coco, voc, a file of names, or names: dog,cat,"traffic light".')
    ] = "voc",
    style: Annotated[
        Style,
        typer.Option(
            help="The styles that models are trained on, the one that the text-to-image model draws, or one kept back."
        ),
    ] = Style.train,
    size: Annotated[int, typer.Option(help="Side of an image in pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="Another seed, other images.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Render labelled scenes as a PASCAL VOC folder.

    Example: factory stickers render --classes voc --n 1000 --style held-out --out VOCstickers
    """
    from factory.cli.progress import progress_bar
    from factory.config.vocabulary import parse_classes
    from factory.stickers.atlas import DRAWN_STYLES, HELD_OUT_STYLE, TRAIN_STYLES
    from factory.stickers.voc_folder import write_voc_folder

    styles = {Style.train: TRAIN_STYLES, Style.drawn: DRAWN_STYLES, Style.held_out: (HELD_OUT_STYLE,)}[style]
    vocabulary = parse_classes(classes)
    with progress_bar("rendering", n, quiet=as_json) as advance:
        write_voc_folder(out, vocabulary, n, styles, size, seed, advance)
    if as_json:
        typer.echo(dumps({"out": str(out), "images": n, "classes": list(vocabulary.names), "styles": list(styles)}))
    else:
        typer.echo(f"{n} images of {len(vocabulary.names)} classes in {out}")


@app.command()
def train(
    part: Annotated[ModelName, typer.Argument(help="Which model. The diffusion model needs a trained autoencoder.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs; each model has its own inside.")] = Path("runs"),
    steps: Annotated[int | None, typer.Option(help="Training steps; the default is the shipped recipe's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Peak learning rate; the default is the shipped recipe's.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves it to PyTorch.")] = 0,
    seed: Annotated[int, typer.Option(help="Another seed, another model.")] = 0,
    start: Annotated[Path | None, typer.Option(help="Folder of a finished model to begin with.")] = None,
) -> None:
    """Train one of the embedded models; the same command again resumes after a kill.

    Example: factory stickers train detector --out runs --steps 2000
    """
    from factory.hf_logging import quiet_model_libraries

    quiet_model_libraries()
    from factory.stickers.recipes import run_recipe

    run_recipe(
        part.value,
        out,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        device=device,
        threads=threads,
        seed=seed,
        start=start,
    )


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for evaluation.json and the sheets.")] = Path("runs/evaluation"),
    pipeline: Annotated[Path | None, typer.Option(help="Diffusers folder; default: the embedded model.")] = None,
    detector: Annotated[Path | None, typer.Option(help="Detector folder; default: the embedded one.")] = None,
    judge: Annotated[
        Path | None, typer.Option(help="Folder of a second, independently trained detector to report beside it.")
    ] = None,
    images_per_class: Annotated[int, typer.Option(min=1, help="Generated images of each class.")] = 20,
    pairs: Annotated[int, typer.Option(min=1, help="Generated images of two classes.")] = 400,
    steps: Annotated[int, typer.Option(min=1, help="Solver steps an image.")] = 12,
    guidance: Annotated[float, typer.Option(min=1, help="Classifier-free guidance; 1 is none.")] = 3.0,
    scenes: Annotated[int, typer.Option(min=80, help="Fresh renders for the mask IoU, per style group.")] = 600,
    table: Annotated[Path | None, typer.Option(help="Markdown page whose table to renew.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON only.")] = False,
) -> None:
    """Measure the embedded models: classes found, mask IoU, variety, copies, time and memory.

    Example: factory stickers evaluate --judge runs/judge/model --table docs/embedded.md
    """
    from factory.hf_logging import quiet_model_libraries

    quiet_model_libraries()
    from factory.evaluation.markdown import write_table
    from factory.stickers.embedded import open_detector, open_pipeline
    from factory.stickers.evaluate import Judges, Sampling
    from factory.stickers.evaluate import as_json as figures_of
    from factory.stickers.evaluate import evaluate as measure
    from factory.stickers.tables import markdown

    quiet = (lambda text: None) if as_json else (lambda text: typer.echo(text, err=True))
    judges = Judges(open_detector(detector), open_detector(judge) if judge else None)
    sampling = Sampling(steps, guidance)
    measured = measure(open_pipeline(pipeline), judges, out, images_per_class, pairs, scenes, sampling, quiet)
    figures = figures_of(measured)
    (out / "evaluation.json").write_text(dumps(figures, indent=1) + "\n")
    if table is not None:
        write_table(table, markdown(measured), "evaluation")
    typer.echo(dumps(figures) if as_json else markdown(measured))


@app.command("evaluate-autoencoder")
def evaluate_autoencoder(
    autoencoder: Annotated[Path | None, typer.Option(help="Folder; default: that of the embedded pipeline.")] = None,
    detector: Annotated[Path | None, typer.Option(help="Detector folder; default: the embedded one.")] = None,
    scenes: Annotated[int, typer.Option(min=1, help="Fresh scenes of one object, and as many of two.")] = 400,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON only.")] = False,
) -> None:
    """Measure what the autoencoder keeps of fresh scenes: PSNR, and the objects that the detector still finds.

    Example: factory stickers evaluate-autoencoder --autoencoder runs/autoencoder/model
    """
    from dataclasses import asdict

    from factory.hf_logging import quiet_model_libraries

    quiet_model_libraries()
    from factory.files.embedded_models import pipeline_folder
    from factory.stickers.embedded import open_detector
    from factory.stickers.evaluate_parts import round_trip
    from factory.stickers.text_to_image import open_autoencoder

    opened = open_autoencoder(autoencoder or pipeline_folder() / "vae", "cpu")
    quiet = (lambda text: None) if as_json else (lambda text: typer.echo(text, err=True))
    figures = asdict(round_trip(opened, open_detector(detector), scenes, quiet))
    typer.echo(dumps({key: round(value, 4) for key, value in figures.items()}))


@app.command()
def draw(
    classes: Annotated[
        str, typer.Option(help='coco, voc, a file of names, or names: dog,cat,"traffic light".')
    ] = "coco",
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("demo/stickers.png"),
    n: Annotated[int, typer.Option("--n", min=1, max=400, help="Number of images.")] = 40,
    pairs: Annotated[bool, typer.Option("--pairs", help="Two classes an image.")] = False,
    seed: Annotated[int, typer.Option(help="Another seed, other images.")] = 0,
) -> None:
    """Draw images with the embedded text-to-image model, find their masks with the embedded detector, show both.

    Example: factory stickers draw --classes dog,cat,bus --n 24 --out dogs.png
    """
    from factory.hf_logging import quiet_model_libraries

    quiet_model_libraries()
    from factory.cli.progress import progress_bar
    from factory.config.vocabulary import parse_classes
    from factory.stickers.contact_sheet import contact_sheet

    vocabulary = parse_classes(classes)
    with progress_bar("drawing", n) as advance:
        found = contact_sheet(vocabulary, n, 2 if pairs else 1, seed, out, advance)
    typer.echo(f"{n} images, every prompted class found in {found}; left the image, right its masks:")
    typer.echo(str(out))
