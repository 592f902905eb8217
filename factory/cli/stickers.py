"""`factory stickers`: render scenes, and train and evaluate the embedded models."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from factory.cli.shared_options import MAX_SEED, AsJson, GuidanceScales, Table
from factory.config.guidance import CONSTANT
from factory.config.stickers import STICKERS
from factory.errors import UserError
from factory.files.strict_json import dumps

app = typer.Typer(
    help="Render scenes, and train and evaluate the embedded models.",
    no_args_is_help=True,
)

_SCENES = 600


class Style(StrEnum):
    """The art styles to draw with."""

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
    out: Annotated[Path, typer.Option(help="Folder to write: new, empty, or from an earlier run of the same command.")],
    n: Annotated[int, typer.Option("--n", help="Number of images.")] = 1000,
    classes: Annotated[
        str, typer.Option(help='coco, voc, a file with one class per line, or names: dog,cat,"traffic light".')
    ] = "voc",
    style: Annotated[
        Style,
        typer.Option(
            help="train: the styles of the training data; drawn: that of the text-to-image model; held-out: a style "
            "that no model was trained on."
        ),
    ] = Style.train,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 128,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the images.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Render labelled scenes as a PASCAL VOC folder.

    Example: factory stickers render --classes voc --n 1000 --style held-out --out VOCstickers
    """
    from factory.cli.progress import progress_bar
    from factory.config.class_option import parse_classes
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
    part: Annotated[
        ModelName,
        typer.Argument(
            metavar="MODEL",
            help="autoencoder, diffusion, turbo, detector or judge (a second detector); the models that it needs come "
            "from --out, or else from the package.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the runs, with one subfolder per model.")] = Path("runs"),
    steps: Annotated[
        int | None,
        typer.Option("--train-steps", "--steps", help="Optimizer steps; by default, as for the models in the package."),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Batch size.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Peak learning rate; by default, as for the models in the package.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 uses the default of PyTorch.")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the training.")] = 0,
    start: Annotated[Path | None, typer.Option(help="Folder of a trained model with the initial weights.")] = None,
) -> None:
    """Train one of the embedded models.

    Rerun the same command to resume after an interruption.

    Example: factory stickers train detector --out runs --steps 2000
    """
    from factory.hf_logging import quiet_model_libraries

    quiet_model_libraries()
    from factory.cli.messages import to_stdout
    from factory.files.paths import check_writable_folder
    from factory.stickers.recipes import run_recipe

    check_writable_folder(out, "--out")
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
        report=to_stdout,
    )


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for evaluation.json and the contact sheets.")] = Path(
        "runs/evaluation"
    ),
    pipeline: Annotated[str, typer.Option(help="stickers, stickers-turbo, or a diffusers folder.")] = STICKERS,
    detector: Annotated[Path | None, typer.Option(help="Detector folder; the embedded one by default.")] = None,
    judge: Annotated[
        Path | None, typer.Option(help="Folder of a second, independently trained detector to report as well.")
    ] = None,
    images_per_class: Annotated[int, typer.Option(min=1, help="Generated images per class.")] = 20,
    pairs: Annotated[int, typer.Option(min=1, help="Generated images of two classes.")] = 400,
    steps: Annotated[
        int | None,
        typer.Option("--solver-steps", "--steps", min=1, help="Denoising steps per image; by default, as `generate`."),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(min=1, help="Scale of classifier-free guidance; 1 disables it; by default, as `generate`."),
    ] = None,
    guidance_schedule: GuidanceScales = None,
    found_only: Annotated[
        bool, typer.Option("--found-only", help="Only measure how often the detector finds the prompted classes.")
    ] = False,
    scenes: Annotated[
        int | None,
        typer.Option(min=80, help=f"Newly rendered scenes for the mask IoU, per style group; by default {_SCENES}."),
    ] = None,
    table: Table = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the metrics, as JSON.")] = False,
) -> None:
    """Evaluate the embedded models: classes found, mask IoU, variety, memorisation, time and memory.

    Rerun the same command to resume after an interruption.

    Example: factory stickers evaluate --pipeline stickers-turbo --found-only

    Example: factory stickers evaluate --judge runs/judge/model --table docs/embedded.md
    """
    from dataclasses import asdict

    from factory import __version__
    from factory.hf_logging import quiet_model_libraries

    quiet_model_libraries()
    from factory.cli.messages import to_nowhere, to_stderr
    from factory.evaluation.markdown import check_page, write_table
    from factory.files.paths import check_writable_folder
    from factory.stickers.embedded import model_digests, open_detector, open_pipeline
    from factory.stickers.evaluate import EvaluationSize, Judges, draw_images, found_in
    from factory.stickers.evaluate import as_json as figures_of
    from factory.stickers.evaluate import evaluate as measure
    from factory.stickers.partial_results import PartialResults
    from factory.stickers.sampling import Sampling
    from factory.stickers.tables import class_table, summary_table

    if found_only:
        _check_only_found({"--judge": judge, "--scenes": scenes, "--table": table})
    check_writable_folder(out, "--out")
    if table is not None:
        check_page(table)
    report = to_nowhere if as_json else to_stderr
    judges = Judges(open_detector(detector), open_detector(judge) if judge else None)
    usual = Sampling.of_model(pipeline)
    schedule = guidance_schedule or (usual.schedule if guidance is None else CONSTANT)
    sampling = Sampling(steps or usual.steps, usual.guidance if guidance is None else guidance, schedule)
    size = EvaluationSize(images_per_class, pairs, scenes or _SCENES)
    opened = open_pipeline(pipeline)
    digests = model_digests(pipeline, detector, judge)
    partial = PartialResults(out, digests | asdict(size) | asdict(sampling) | {"version": __version__})
    if found_only:
        images = draw_images(opened, out, partial, size, sampling, report)
        typer.echo(dumps(asdict(found_in(judges.detector, images))))
        partial.delete()
        return
    measured = measure(opened, judges, out, partial, size, sampling, report)
    figures = figures_of(measured)
    (out / "evaluation.json").write_text(dumps(figures, indent=1) + "\n")
    given = {"--pipeline": None if pipeline == STICKERS else pipeline, "--detector": detector, "--judge": judge}
    models = "".join(f" {name} {value}" for name, value in given.items() if value is not None)
    summary, by_class = summary_table(measured, models), class_table(measured, models)
    if table is not None:
        write_table(table, summary, "evaluation")
        write_table(table, by_class, "evaluation-classes")
    typer.echo(dumps(figures) if as_json else f"{summary}\n{by_class}")
    partial.delete()


def _check_only_found(others: dict[str, object]) -> None:
    """Raise UserError if one of these options, by name, is given together with --found-only."""
    given = next((name for name, value in others.items() if value is not None), None)
    if given is not None:
        raise UserError(f"{given} has no effect with --found-only; leave one of the two out.")


@app.command("evaluate-autoencoder")
def evaluate_autoencoder(
    autoencoder: Annotated[
        Path | None, typer.Option(help="Autoencoder folder; that of the embedded model by default.")
    ] = None,
    detector: Annotated[Path | None, typer.Option(help="Detector folder; the embedded one by default.")] = None,
    scenes: Annotated[
        int, typer.Option(min=1, help="Newly rendered scenes with one object, and as many with two.")
    ] = 400,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the metrics, as JSON.")] = False,
) -> None:
    """Evaluate reconstructions of the autoencoder: PSNR, and the objects that the detector still finds.

    Example: factory stickers evaluate-autoencoder --autoencoder runs/autoencoder/model
    """
    from dataclasses import asdict

    from factory.hf_logging import quiet_model_libraries

    quiet_model_libraries()
    from factory.cli.messages import to_nowhere, to_stderr
    from factory.files.embedded_models import pipeline_folder
    from factory.stickers.embedded import open_detector
    from factory.stickers.evaluate_parts import round_trip
    from factory.stickers.text_to_image import open_autoencoder

    opened = open_autoencoder(autoencoder or pipeline_folder() / "vae", "cpu")
    report = to_nowhere if as_json else to_stderr
    figures = asdict(round_trip(opened, open_detector(detector), scenes, report))
    typer.echo(dumps({key: round(value, 4) for key, value in figures.items()}))


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
    from factory.hf_logging import quiet_model_libraries

    quiet_model_libraries()
    from factory.cli.progress import progress_bar
    from factory.config.class_option import parse_classes
    from factory.files.paths import check_image_file
    from factory.stickers.contact_sheet import contact_sheet

    vocabulary = parse_classes(classes)
    check_image_file(out, "--out")
    with progress_bar("drawing", n) as advance:
        found = contact_sheet(vocabulary, n, 2 if pairs else 1, seed, out, model, advance)
    typer.echo(f"{n} images, all prompted classes found in {found}; left: image, right: masks.")
    typer.echo(str(out))
