"""`factory compare-segmenters`: Protocol II."""

from pathlib import Path
from typing import Annotated

import typer

from factory.cli.messages import to_stderr, to_stdout
from factory.cli.shared_options import Annotations, AsJson, Device, SegmenterClasses, Table, Threads
from factory.files.strict_json import dumps


def compare_segmenters(
    segmenters: Annotated[
        list[str], typer.Argument(metavar="NAME=FOLDER", help="Names and folders of trained segmenters.")
    ],
    real: Annotated[
        list[str], typer.Option(help="Name and folder of labelled images, as NAME=FOLDER; can be repeated.")
    ],
    real_set: Annotated[str | None, typer.Option(help="Image set of the PASCAL VOC folders; val by default.")] = None,
    annotations: Annotations = None,
    classes: SegmenterClasses = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split that defines the unseen classes, or a file with one of them per line; by default that of the "
            "paper: zs3 for voc, 1 for coco."
        ),
    ] = None,
    table: Table = None,
    device: Device = "auto",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Compare segmenters on labelled images that none was trained on (Protocol II of the paper).

    Example: factory compare-segmenters a=runs/a/model b=runs/b/model --real VOC=VOCdevkit/VOC2012
    """
    from dataclasses import asdict

    from factory.evaluation.markdown import check_page, write_table
    from factory.evaluation.protocol_2 import PAPER_SPLITS, as_markdown, compare, shared_vocabulary
    from factory.segmenter.measure import RealImages

    if table is not None:
        check_page(table)
    vocabulary = shared_vocabulary(segmenters, real, classes)
    classes, split = classes or vocabulary.name, split or PAPER_SPLITS.get(vocabulary.name)
    images = RealImages(Path(), real_set, annotations, None, split)
    results = compare(segmenters, real, images, device, threads, to_stderr)
    text = as_markdown(results, classes, split)
    if table is not None:
        write_table(table, f"{_caption(classes, split)}\n\n{text}\n", f"protocol-2-{classes}")
    to_stdout(dumps([asdict(result) for result in results]) if as_json else text)


def _caption(classes: str, split: str | None) -> str:
    """The command that printed a table. The classes of other segmenters than those of voc and coco have no name."""
    from factory.config.vocabulary import CUSTOM

    options = {"--classes": None if classes == CUSTOM else classes, "--split": split}
    given = "".join(f" {name} {value}" for name, value in options.items() if value is not None)
    return f"`factory compare-segmenters ...{given}` printed this table."
