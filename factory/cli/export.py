"""`factory export`: a dataset in the format of another library."""

from typing import Annotated, Literal

import typer

from factory.cli.messages import to_stdout
from factory.cli.shared_options import AsJson, Dataset
from factory.errors import counted
from factory.files.strict_json import dumps


def export(
    dataset: Dataset,
    format_name: Annotated[
        Literal["coco", "voc", "yolo", "hf"],
        typer.Option("--format", help="coco, voc, yolo (segmentation) or hf (Hugging Face parquet)."),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            help="Folder to write; by default DATASET-FORMAT, such as pets-coco, next to a dataset in a folder. For "
            "one in a bucket, it is in the working directory and named after the whole URL."
        ),
    ] = None,
    val: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of samples in the validation split, chosen by a hash of the sample key; below 1."
        ),
    ] = 0.05,
    polygons: Annotated[
        bool, typer.Option("--polygons", help="COCO only: write polygons instead of run-length encodings.")
    ] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Export an unfinished dataset as it is now.")] = False,
    as_json: AsJson = False,
) -> None:
    """Export a dataset as COCO, PASCAL VOC, YOLO or Hugging Face parquet.

    Rerun the same command to resume, or to add the new samples of a dataset that has grown.

    Example: factory export out/ --format coco

    Example: factory export out/ --format yolo --out pets-yolo --val 0.1
    """
    from factory.cli.progress import progress_bar
    from factory.dataset.default_target import default_target
    from factory.dataset.storage import Store
    from factory.export.run import Export, Options
    from factory.files.paths import local_path

    target = default_target(dataset, format_name) if out is None else local_path(out, "--out")
    job = Export(Store(dataset), target, Options(format_name, val, polygons), partial)
    with progress_bar("exporting samples", job.samples, as_json) as show:
        summary = job.run(show)
    if as_json:
        to_stdout(dumps(vars(summary)))
        return
    to_stdout(f"{summary.out}: {counted(summary.train, 'sample')} for training, {summary.val} for validation.")
    if not summary.complete:
        shards = f"{summary.shards} of {summary.shards_planned} shards"
        to_stdout(
            f"The dataset is not finished; this export contains {shards}. Rerun the same command later to add the rest."
        )
