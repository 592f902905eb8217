"""`factory train-grounder`, `factory evaluate-grounder` and `factory import-grounder`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from factory.files.strict_json import dumps

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto: the GPU where there is one.")]
Out = Annotated[Path, typer.Option(help="Folder of the run: checkpoints, log, board; the grounder is in model/.")]


def train_grounder(
    oracles: Annotated[list[str], typer.Argument(help="Oracle sets: folders or URLs of `bootstrap-oracle`.")],
    out: Out,
    module: Annotated[
        Literal["guided", "paper", "paper-cfg"],
        typer.Option(help="The project's network, the paper's, or the paper's as published: both halves of guidance."),
    ] = "guided",
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of the optimizer; five passes over the samples by default, 300 at least."),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Samples of a step, over all devices; 32 by default, or as many as memory holds."),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak; 0.001 for guided, 0.0003 for paper by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Order of the samples.")] = 0,
    device: Device = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Devices that train together, through Ray Train.")] = 1,
    address: Annotated[str | None, typer.Option(help="Ray cluster of several devices; local by default.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; all by default.")] = 0,
    start: Annotated[Path | None, typer.Option(help="Grounder folder to begin with.")] = None,
) -> None:
    """Train a grounding module on oracle sets, without one human label.

    Ctrl-C or a kill loses at most 200 steps: the same command goes on from the last checkpoint to the same result. A
    sample of a class that the split leaves unseen is refused. `tensorboard --logdir OUT/board` shows losses, figures on
    held-out samples and masks.

    Example: factory train-grounder oracle/ --out runs/grounder

    Example: factory generate --masks runs/grounder/model --classes voc --n 1000 --shards out/
    """
    from factory.config.sections import EngineRecipe
    from factory.dataset.storage import absolute
    from factory.grounder.run import GrounderTraining, train_here
    from factory.training.distributed import train_on_several

    run = GrounderTraining(
        oracles=absolute(oracles),
        out=str(out.absolute()),
        module=module,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        threads=threads,
        start=str(start.absolute()) if start else None,
    )
    run = run.on_several(devices)
    several = devices > 1
    folder = train_on_several(train_here, run, devices, EngineRecipe(address=address)) if several else train_here(run)
    typer.echo(
        f"Use it with `factory generate --masks {folder}`, measure it with `factory evaluate-grounder {folder}`."
    )


def evaluate_grounder(
    grounders: Annotated[list[str], typer.Argument(help="Grounder folders, of any splits; NAME=FOLDER names its row.")],
    classes: Annotated[str, typer.Option(help="voc or coco: the vocabulary of their oracle sets.")] = "voc",
    images: Annotated[int, typer.Option(min=1, help="Images of each group and split.")] = 100,
    real: Annotated[
        list[str] | None,
        typer.Option(help="Set of `factory invert`, or NAME=SET: measure on real images and true masks instead."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for protocol-1.json and protocol-1.md.")] = None,
    table: Annotated[Path | None, typer.Option(help="Markdown page whose table between the marks is renewed.")] = None,
    device: Device = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Protocol I: mIoU against the detector's masks on fresh generated images, seen and unseen classes apart.

    Each grounder is measured on the split that it was trained for, beside the attention baseline, on one and two
    objects; only images count in which the detector finds every class of the prompt. IoU is pooled by class, then
    averaged over classes, then over splits.

    Example: factory evaluate-grounder runs/1/model runs/2/model runs/3/model --classes voc --out protocol/

    Example: factory evaluate-grounder runs/1/model --real inverted/
    """
    from dataclasses import asdict

    from factory.evaluation.grounders_on_real import RealResult, on_real
    from factory.evaluation.grounders_on_real import as_markdown as real_table
    from factory.evaluation.markdown import write_table
    from factory.evaluation.protocol_1 import GrounderResult, as_markdown, protocol_1, write_results
    from factory.hf_logging import quiet_model_libraries

    quiet_model_libraries()

    def report(text: str) -> None:
        typer.echo(text, err=True)

    rows: list[GrounderResult] | list[RealResult]
    if real:
        rows = on_real(grounders, real, device, threads, report)
        text, how, mark = real_table(rows), "--real ...", "grounders-on-real"
    else:
        rows = protocol_1(grounders, classes, images, device, threads, report)
        text, how, mark = as_markdown(rows, classes), f"--classes {classes} --images {images}", f"protocol-1-{classes}"
        if out is not None:
            write_results(rows, classes, out)
    if table is not None:
        write_table(table, f"`factory evaluate-grounder ... {how}` printed this table.\n\n{text}\n", mark)
    typer.echo(dumps([asdict(row) for row in rows]) if as_json else text)


def import_grounder(
    checkpoint: Annotated[Path, typer.Argument(help="The released file, grounding_module.pth.")],
    model: Annotated[str, typer.Option(help="Stable Diffusion 1: a diffusers folder or a hub id.")],
    out: Annotated[Path, typer.Option(help="Folder of the grounder to write.")],
    classes: Annotated[str, typer.Option(help="The vocabulary that it was trained for.")] = "voc",
    split: Annotated[str, typer.Option(help="The vocabulary's split that it was trained for.")] = "1",
    detector: Annotated[
        str | None, typer.Option(help="Detector whose masks `evaluate-grounder` compares with; stickers by default.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Make a grounder's folder of the weights that the paper's authors released (`paper-cfg`).

    Example: factory import-grounder grounding_module.pth --model runwayml/stable-diffusion-v1-5 --out runs/released
    """
    from factory.grounder.importing import Release, import_released

    folder = import_released(Release(checkpoint, model, classes, split, detector), out, device)
    typer.echo(
        f"Use it with `factory generate --model {model} --masks {folder}`, measure it with `factory evaluate-grounder "
        f"{folder}`."
    )
