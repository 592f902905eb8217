"""`factory compare-segmenters`."""

from pathlib import Path
from typing import Annotated

import typer

from factory.files.strict_json import dumps


def compare_segmenters(
    segmenters: Annotated[list[str], typer.Argument(help="NAME=FOLDER of each trained segmenter.")],
    real: Annotated[list[str], typer.Option(help="NAME=FOLDER of labelled images; may be given again.")],
    real_set: Annotated[str, typer.Option(help="Image set of the PASCAL VOC folders.")] = "val",
    annotations: Annotated[
        Path | None, typer.Option(help="COCO's instances_*.json, where --real is COCO's folder of images.")
    ] = None,
    classes: Annotated[str, typer.Option(help="voc, coco, a file of names, or names.")] = "voc",
    split: Annotated[str, typer.Option(help="The vocabulary's split that tells seen and unseen apart.")] = "zs3",
    table: Annotated[Path | None, typer.Option(help="Markdown page whose table between the marks is renewed.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto: the GPU where there is one.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; all by default.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Protocol II: segmenters side by side on labelled images that none of them saw.

    Example: factory compare-segmenters one=runs/one/model two=runs/two/model --real VOC=VOCdevkit/VOC2012
    """
    from dataclasses import asdict

    from factory.evaluation.protocol_2 import as_markdown, compare
    from factory.segmenter.run import RealImages

    def report(text: str) -> None:
        typer.echo(text, err=True)

    where = RealImages(Path(), real_set, annotations, classes, split)
    rows = compare(segmenters, real, where, device, threads, report)
    text = as_markdown(rows, classes)
    if table is not None:
        from factory.evaluation.markdown import write_table

        told = f"`factory compare-segmenters ... --classes {classes} --split {split}` printed this."
        write_table(table, f"{told}\n\n{text}\n", f"protocol-2-{classes}")
    typer.echo(dumps([asdict(row) for row in rows]) if as_json else text)
