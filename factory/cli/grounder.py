"""`factory train-grounder`, `factory evaluate-grounder` and `factory import-grounder`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from factory.cli.messages import to_stderr, to_stdout
from factory.cli.shared_options import MAX_SEED, AsJson, Device, Devices, Table, Threads, TrainAddress
from factory.errors import UserError, command
from factory.files.strict_json import dumps


def train_grounder(
    datasets: Annotated[
        list[str],
        typer.Argument(metavar="DATASET", help="Folders or URLs of datasets from `bootstrap-oracle` or `invert`."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, logs, and the grounder in model/.")],
    module: Annotated[
        Literal["guided", "paper", "paper-cfg"],
        typer.Option(
            help="guided: network of this project; paper: network of the paper; paper-cfg: as released by its authors, "
            "with features of both halves of classifier-free guidance."
        ),
    ] = "guided",
    steps: Annotated[
        int | None,
        typer.Option(
            "--train-steps",
            "--steps",
            min=1,
            help="Optimizer steps of the training; by default, five passes over the samples, but at least 300.",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Batch size over all devices; by default 32, or as many as fit into memory."),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=0, help="Peak learning rate; by default 0.001 for guided and 0.0003 for the others."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the sample order.")] = 0,
    device: Device = "auto",
    devices: Devices = 1,
    address: TrainAddress = None,
    threads: Threads = 0,
    start: Annotated[Path | None, typer.Option(help="Grounder folder with the initial weights.")] = None,
) -> None:
    """Train a grounder, the network that predicts masks, on oracle datasets.

    No human labels are needed. Rerun the same command to resume from the last checkpoint, with the same result; at most
    200 steps or ten minutes are lost. Samples of unseen classes of the split are rejected. `tensorboard --logdir
    OUT/board` shows losses, masks and metrics on held-out samples.

    Example: factory train-grounder oracle/ --out runs/grounder

    Example: factory generate --masks runs/grounder/model --classes voc --n 1000 --shards out/
    """
    from functools import partial

    from factory.config.sections import EngineRecipe
    from factory.dataset.storage import absolute
    from factory.grounder.run import GrounderTraining, check, train_here
    from factory.training.distributed import check_devices, train_on_several

    check_devices(devices, device, address)
    run = GrounderTraining(
        oracles=absolute(datasets),
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
    train = partial(train_here, report=to_stderr)
    if devices > 1:
        check(run)
        folder = train_on_several(train, run, devices, EngineRecipe(address=address))
    else:
        folder = train(run)
    to_stdout(_next_steps(folder))


def evaluate_grounder(
    grounders: Annotated[
        list[str], typer.Argument(metavar="GROUNDER", help="Grounder folders of any splits, or NAME=FOLDER.")
    ],
    classes: Annotated[
        str | None,
        typer.Option(
            help="Classes of their oracle datasets, seen and unseen: voc or coco, which are recognised by default, a "
            "file with one class per line, or names."
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Number of images per group and split; by default 100.")
    ] = None,
    real: Annotated[
        list[str] | None,
        typer.Option(
            help="Evaluate on real images with human labels: a dataset from `factory invert`, or NAME=DATASET; can be "
            "repeated."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder in which to write protocol-1.json and protocol-1.md.")
    ] = None,
    table: Table = None,
    device: Device = "auto",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Evaluate grounders on newly generated images (Protocol I of the paper), or on labelled images.

    Protocol I generates images with one and two objects of seen and unseen classes, and measures the mIoU between the
    masks of a grounder and those of a detector. Images in which the detector does not find every class of the prompt
    are left out. The IoU of a class is computed over all images, then averaged over classes and over splits. Each
    grounder is evaluated on the split of its training; attention masks are the baseline.

    Example: factory evaluate-grounder runs/1/model runs/2/model runs/3/model --classes voc --out protocol/

    Example: factory evaluate-grounder runs/1/model --real inverted/
    """
    from dataclasses import asdict

    from factory.evaluation.grounder_results import GrounderResult, as_markdown, write_results
    from factory.evaluation.grounders_on_real import RealResult, on_real
    from factory.evaluation.grounders_on_real import as_markdown as real_table
    from factory.evaluation.markdown import check_page, write_table
    from factory.evaluation.protocol_1 import protocol_1, vocabulary_of
    from factory.files.paths import check_writable_folder

    of_protocol_1 = {"--out": out, "--images": images, "--classes": classes}
    given = next((name for name, value in of_protocol_1.items() if value is not None), None)
    if real and given is not None:
        raise UserError(
            f"{given} is an option of Protocol I, which does not run with --real; remove it. --table writes the table "
            f"of --real to a file."
        )
    if out is not None:
        check_writable_folder(out, "--out")
    if table is not None:
        check_page(table)
    images = images or 100
    results: list[GrounderResult] | list[RealResult]
    if real:
        results = on_real(grounders, real, device, threads, to_stderr)
        text, options, marker = real_table(results), "--real ...", "grounders-on-real"
    else:
        classes = classes or vocabulary_of(grounders)
        results = protocol_1(grounders, classes, images, device, threads, to_stderr)
        text, options = as_markdown(results, classes), f"--classes {classes} --images {images}"
        marker = f"protocol-1-{classes if classes in ('voc', 'coco') else 'custom'}"
        if out is not None:
            write_results(results, classes, out)
    if table is not None:
        write_table(table, f"`factory evaluate-grounder ... {options}` printed this table.\n\n{text}\n", marker)
    to_stdout(dumps([asdict(result) for result in results]) if as_json else text)


def import_grounder(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="The released file, grounding_module.pth.")],
    model: Annotated[str, typer.Option(help="Stable Diffusion 1 model: a diffusers folder or a hub id.")],
    out: Annotated[Path, typer.Option(help="Grounder folder to write.")],
    classes: Annotated[str, typer.Option(help="Vocabulary that the grounder was trained for.")] = "voc",
    split: Annotated[
        str, typer.Option(help="Split that the grounder was trained for, or a file with one unseen class per line.")
    ] = "1",
    detector: Annotated[
        str | None, typer.Option(help="Reference detector for `evaluate-grounder`; stickers by default.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Convert the weights that the authors of the paper released to a grounder (module `paper-cfg`).

    Example: factory import-grounder grounding_module.pth --model stable-diffusion-v1-5/stable-diffusion-v1-5
    --out runs/released
    """
    from factory.grounder.importing import Release, import_released

    folder = import_released(Release(checkpoint, model, classes, split, detector), out, device)
    to_stdout(_next_steps(folder))


def _next_steps(folder: Path) -> str:
    """The commands that use and evaluate a grounder; it works only with the model and the LoRA of its training."""
    from factory.config.stickers import STICKERS
    from factory.grounder.folder import read_grounder_config

    config = read_grounder_config(folder)
    options = {"--model": config.model, "--lora": config.oracle["generator"].get("lora"), "--masks": str(folder)}
    given = [str(word) for option in options.items() if option[1] not in (None, STICKERS) for word in option]
    return (
        f"Use it with {command('generate', *given)}, or evaluate it with {command('evaluate-grounder', str(folder))}."
    )
