"""`factory stickers evaluate` and `evaluate-autoencoder`: evaluate the embedded models."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.messages import to_stderr, to_stdout
from factory.cli.shared_options import GuidanceScales, Table
from factory.config.guidance import CONSTANT
from factory.config.stickers import STICKERS, check_pipeline
from factory.errors import UserError
from factory.files.strict_json import dumps

if TYPE_CHECKING:
    from factory.stickers.evaluate import Evaluation

_SCENES = 600


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
        typer.Option(
            "--solver-steps", "--steps", min=1, max=1000, help="Sampling steps per image; by default, as in `generate`."
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=1, max=100, help="Scale of classifier-free guidance; 1 disables it; by default, as in `generate`."
        ),
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
    from factory.evaluation.markdown import check_page
    from factory.files.lock import sole_writer
    from factory.files.paths import check_writable_folder
    from factory.hf_logging import quiet_model_libraries

    if found_only:
        _check_only_found({"--scenes": scenes, "--table": table})
    check_writable_folder(out, "--out")
    if table is not None:
        check_page(table)
    check_pipeline(pipeline, "--pipeline")
    _check_detector(detector, "--detector")
    _check_detector(judge, "--judge")
    quiet_model_libraries()
    from factory.stickers.embedded import model_digests, open_detector, open_pipeline
    from factory.stickers.evaluate import EvaluationSize, Judges, draw_images, found_in
    from factory.stickers.evaluate import evaluate as measure
    from factory.stickers.partial_results import PartialResults
    from factory.stickers.sampling import Sampling

    report = (lambda text: None) if as_json else to_stderr
    judges = Judges(open_detector(detector), open_detector(judge) if judge else None)
    opened = open_pipeline(pipeline)
    usual = Sampling.of_model(pipeline)
    schedule = guidance_schedule or (usual.schedule if guidance is None else CONSTANT)
    sampling = Sampling(steps or usual.steps, usual.guidance if guidance is None else guidance, schedule)
    size = EvaluationSize(images_per_class, pairs, scenes or _SCENES)
    identity = model_digests(pipeline, detector, judge) | asdict(size) | asdict(sampling) | {"version": __version__}
    given = {"--pipeline": None if pipeline == STICKERS else pipeline, "--detector": detector, "--judge": judge}
    models = "".join(f" {name} {value}" for name, value in given.items() if value is not None)
    out.mkdir(parents=True, exist_ok=True)
    with sole_writer(out / "evaluation.lock", out):
        partial = PartialResults(out, identity)
        if found_only:
            images = draw_images(opened, out, partial, size, sampling, report)
            found_by_judge = asdict(found_in(judges.second, images)) if judges.second else None
            to_stdout(dumps({"found": asdict(found_in(judges.detector, images)), "found_by_judge": found_by_judge}))
        else:
            measured = measure(opened, judges, out, partial, size, sampling, report)
            _write(measured, models, out, table, as_json)
        partial.delete()


def _write(measured: "Evaluation", models: str, out: Path, table: Path | None, as_json: bool) -> None:
    """Write the metrics to `evaluation.json` and to the page `table`, and print them."""
    from factory.evaluation.markdown import write_table
    from factory.stickers.evaluate import as_json as metrics_of
    from factory.stickers.tables import class_table, summary_table

    metrics = metrics_of(measured)
    (out / "evaluation.json").write_text(dumps(metrics, indent=1) + "\n")
    summary, by_class = summary_table(measured, models), class_table(measured, models)
    if table is not None:
        write_table(table, summary, "evaluation")
        write_table(table, by_class, "evaluation-classes")
    to_stdout(dumps(metrics) if as_json else f"{summary}\n{by_class}")


def _check_detector(folder: Path | None, option: str) -> None:
    """Raise UserError if `folder` is given and not a detector; requires no model library."""
    if folder is not None and not (folder / "config.json").is_file():
        raise UserError(f"{option} must be a folder that `factory stickers train` has written, got {folder}.")


def _check_only_found(others: dict[str, object]) -> None:
    """Raise UserError if one of these options, by name, is given together with --found-only."""
    given = next((name for name, value in others.items() if value is not None), None)
    if given is not None:
        raise UserError(f"{given} has no effect with --found-only; leave one of the two out.")


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

    if autoencoder is not None and not (autoencoder / "config.json").is_file():
        raise UserError(f"--autoencoder must be the folder of an autoencoder, got {autoencoder}.")
    _check_detector(detector, "--detector")
    quiet_model_libraries()
    from factory.files.embedded_models import pipeline_folder
    from factory.stickers.embedded import open_detector
    from factory.stickers.evaluate_parts import round_trip
    from factory.stickers.text_to_image import open_autoencoder

    opened = open_autoencoder(autoencoder or pipeline_folder() / "vae", "cpu")
    report = (lambda text: None) if as_json else to_stderr
    metrics = asdict(round_trip(opened, open_detector(detector), scenes, report))
    to_stdout(dumps({key: round(value, 4) for key, value in metrics.items()}))
