"""`factory train-segmenter` and `factory evaluate-segmenter`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from factory.cli.messages import to_stderr, to_stdout
from factory.cli.shared_options import (
    MAX_SEED,
    Annotations,
    AsJson,
    Device,
    Devices,
    SegmenterClasses,
    Threads,
    TrainAddress,
)
from factory.errors import command, counted
from factory.files.strict_json import dumps


def train_segmenter(
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, logs, and the segmenter in model/.")],
    datasets: Annotated[
        list[str] | None,
        typer.Argument(metavar="DATASET", help="Folders or URLs of datasets; none to train only on --real."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="voc, coco, a file with one class per line, or names. By default those of --start, else those of the "
            "datasets; without datasets voc, or coco with --annotations."
        ),
    ] = None,
    architecture: Annotated[
        str, typer.Option(help="segformer (runs on CPUs), maskformer, mask2former, a folder or a hub id.")
    ] = "segformer",
    real: Annotated[
        str | None,
        typer.Option(
            help="Labelled images to mix in: PASCAL VOC folder, folder of COCO images, or dataset from `invert`."
        ),
    ] = None,
    real_set: Annotated[str | None, typer.Option(help="Image set of the PASCAL VOC folder; train by default.")] = None,
    annotations: Annotations = None,
    real_classes: Annotated[
        Literal["all", "seen"], typer.Option(help="all, or seen, which skips images with unseen classes of --split.")
    ] = "all",
    split: Annotated[
        str | None, typer.Option(help="Split that defines the unseen classes, or a file with one of them per line.")
    ] = None,
    real_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of real samples when mixing datasets with --real; 0.5 by default."),
    ] = None,
    steps: Annotated[
        int, typer.Option("--train-steps", "--steps", min=1, help="Optimizer steps of the training.")
    ] = 4000,
    batch: Annotated[int, typer.Option(min=1, help="Batch size over all devices.")] = 16,
    side: Annotated[
        int,
        typer.Option(
            min=32,
            max=4096,
            help="Side of the square training crops in pixels. The shorter side of an image is scaled to 0.7 to 1.5 "
            "times this length in training, and to this length in evaluation.",
        ),
    ] = 128,
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 6e-4,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the sample order and the augmentation.")] = 0,
    device: Device = "auto",
    devices: Devices = 1,
    address: TrainAddress = None,
    threads: Threads = 0,
    start: Annotated[Path | None, typer.Option(help="Segmenter folder with the initial weights.")] = None,
) -> None:
    """Train a segmentation model on datasets, optionally mixed with labelled images.

    Rerun the same command after an interruption to resume from the last checkpoint, with the same result.

    Example: factory train-segmenter out/ --out runs/segmenter

    Example: factory train-segmenter out/ --architecture mask2former --devices 8 --out runs/segmenter

    Example: factory train-segmenter out/ --real VOCdevkit/VOC2012 --real-classes seen --split 1 --out runs/mixed
    """
    from functools import partial

    from factory.config.sections import EngineRecipe
    from factory.segmenter.run import SegmenterTraining, check, train_here
    from factory.training.distributed import check_devices, train_on_several

    check_devices(devices, device, address)
    run = SegmenterTraining(
        out=str(out),
        shards=tuple(datasets or ()),
        classes=classes,
        architecture=architecture,
        real=real,
        real_set=real_set,
        annotations=str(annotations) if annotations else None,
        real_classes=real_classes,
        split=split,
        real_share=real_share,
        steps=steps,
        batch=batch,
        side=side,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        threads=threads,
        start=str(start) if start else None,
    )
    train = partial(train_here, report=to_stderr)
    if devices > 1:
        check(run)
        folder = train_on_several(train, run.absolute(), devices, EngineRecipe(address=address))
    else:
        folder = train(run)
    evaluate = command("evaluate-segmenter", str(folder), "--real", "VOC_FOLDER")
    to_stdout(f"Evaluate it with {evaluate}.")


def evaluate_segmenter(
    segmenter: Annotated[Path, typer.Argument(metavar="SEGMENTER", help="Folder of a trained segmenter.")],
    real: Annotated[Path, typer.Option(help="Labelled images: PASCAL VOC folder or folder of COCO images.")],
    real_set: Annotated[str | None, typer.Option(help="Image set of the PASCAL VOC folder; val by default.")] = None,
    annotations: Annotations = None,
    classes: SegmenterClasses = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Also report seen and unseen classes of this split, or of a file with one unseen class per line."
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Evaluate a segmenter on labelled images.

    Prints the IoU of each class, the mIoU of seen and unseen classes, and their harmonic mean, in percent. Pixels are
    summed over the whole image set and 255 is ignored, as in the PASCAL VOC devkit.

    Example: factory evaluate-segmenter runs/segmenter/model --real VOCdevkit/VOC2012 --split 1

    Example: factory evaluate-segmenter runs/coco/model --real val2017 --annotations instances_val2017.json
    """
    from dataclasses import asdict

    from factory.segmenter.measure import RealImages, evaluate_here

    images = RealImages(real, real_set, annotations, classes, split)
    result = evaluate_here(segmenter, images, device, threads, to_stderr)
    if as_json:
        to_stdout(dumps(asdict(result)))
        return
    for name, value in result.by_class.items():
        to_stdout(f"{name:20} {_percent(value):>6}")
    to_stdout(f"{'mIoU with background':20} {_percent(result.miou):>6}   over {counted(result.images, 'image')}")
    if split is not None:
        seen, unseen, harmonic = map(_percent, (result.seen, result.unseen, result.harmonic))
        to_stdout(f"seen {seen}  unseen {unseen}  harmonic mean {harmonic}")


def _percent(share: float) -> str:
    return "none" if share != share else f"{100 * share:.1f}"
