"""`factory train-segmenter` and `factory evaluate-segmenter`."""

from pathlib import Path
from typing import Annotated

import typer

from factory.files.strict_json import dumps

Classes = Annotated[str, typer.Option(help="voc, coco, a file of names, or names: the classes that are told apart.")]
Annotations = Annotated[
    Path | None, typer.Option(help="COCO's instances_*.json, where --real is COCO's folder of images.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto: the GPU where there is one.")]
Threads = Annotated[int, typer.Option(help="CPU threads; all by default.")]


def train_segmenter(
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, log, board; the segmenter is in model/.")],
    shards: Annotated[
        list[str] | None, typer.Argument(help="Sets: folders or URLs; none to train on --real alone.")
    ] = None,
    classes: Classes = "voc",
    architecture: Annotated[
        str, typer.Option(help="segformer (for CPUs), maskformer, mask2former, a folder or a hub id.")
    ] = "segformer",
    real: Annotated[
        str | None,
        typer.Option(help="Labelled images to mix in: a PASCAL VOC folder, COCO's images or a set of `invert`."),
    ] = None,
    real_set: Annotated[str, typer.Option(help="The PASCAL VOC folder's image set.")] = "train",
    annotations: Annotations = None,
    real_classes: Annotated[
        str, typer.Option(help="all, or seen: without images that show a class unseen by --split.")
    ] = "all",
    split: Annotated[
        str | None, typer.Option(help="The vocabulary's split that says which classes are unseen.")
    ] = None,
    real_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the samples that is real, where both are.")
    ] = 0.5,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimizer.")] = 4000,
    batch: Annotated[int, typer.Option(min=1, help="Images of a step, over all devices.")] = 16,
    side: Annotated[int, typer.Option(min=32, help="Square that is trained on, in pixels.")] = 128,
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak.")] = 6e-4,
    seed: Annotated[int, typer.Option(help="Order and augmentation.")] = 0,
    device: Device = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Devices that train together, through Ray Train.")] = 1,
    address: Annotated[str | None, typer.Option(help="Ray cluster of several devices; local by default.")] = None,
    threads: Threads = 0,
    start: Annotated[Path | None, typer.Option(help="Segmenter folder to begin with.")] = None,
) -> None:
    """Train an ordinary segmentation model straight from shards, alone or mixed with labelled images.

    The same command goes on from the last checkpoint after Ctrl-C or a kill, to the same result.

    Example: factory train-segmenter out/ --classes voc --out runs/segmenter

    Example: factory train-segmenter out/ --architecture mask2former --devices 8 --out runs/segmenter

    Example: factory train-segmenter out/ --real VOCdevkit/VOC2012 --real-classes seen --split 1 --out runs/mixed
    """
    from factory.config.sections import EngineRecipe
    from factory.segmenter.run import SegmenterTraining, train_here
    from factory.training.distributed import train_on_several

    run = SegmenterTraining(
        out=str(out),
        shards=tuple(shards or ()),
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
    if devices > 1:
        folder = train_on_several(train_here, run.absolute(), devices, EngineRecipe(address=address))
    else:
        folder = train_here(run)
    typer.echo(f"Measure it: factory evaluate-segmenter {folder} --real VOC_FOLDER --classes {classes}")


def evaluate_segmenter(
    segmenter: Annotated[Path, typer.Argument(help="Folder of a trained segmenter.")],
    real: Annotated[Path, typer.Option(help="Labelled images: a PASCAL VOC folder, or COCO's images.")],
    real_set: Annotated[str, typer.Option(help="The PASCAL VOC folder's image set.")] = "val",
    annotations: Annotations = None,
    classes: Classes = "voc",
    split: Annotated[str | None, typer.Option(help="Tell seen and unseen classes of this split apart.")] = None,
    device: Device = "auto",
    threads: Threads = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """mIoU over a labelled folder: by class, over seen and unseen classes, and their harmonic mean.

    Pixels are summed over the whole image set and 255 is not counted, as in PASCAL VOC's devkit.

    Example: factory evaluate-segmenter runs/segmenter/model --real VOCdevkit/VOC2012 --split 1

    Example: factory evaluate-segmenter runs/coco/model --classes coco --real val2017 --annotations instances.json
    """
    from dataclasses import asdict

    from factory.segmenter.run import RealImages, evaluate_here

    images = RealImages(real, real_set, annotations, classes, split)
    result = evaluate_here(segmenter, images, device, threads, lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(dumps(asdict(result)))
        return
    for name, value in result.by_class.items():
        typer.echo(f"{name:20} {'  none' if value != value else f'{100 * value:6.1f}'}")
    typer.echo(f"{'mIoU with background':20} {100 * result.miou:6.1f}   over {result.images} images")
    if split is not None:
        typer.echo(
            f"seen {100 * result.seen:.1f}  unseen {100 * result.unseen:.1f}  harmonic {100 * result.harmonic:.1f}"
        )
