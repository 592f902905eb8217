"""`factory export`: a dataset in the form of another library."""

from typing import Annotated

import typer

from factory.files.strict_json import dumps


def export(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder or URL of a dataset.")],
    form: Annotated[str, typer.Option("--format", help="coco, voc, yolo (segmentation) or hf (Hugging Face parquet).")],
    to: Annotated[str | None, typer.Option(help="Folder to write; DIR-coco and so on by default.")] = None,
    val: Annotated[float, typer.Option(help="Share of the samples for validation, drawn by hash of the key.")] = 0.05,
    polygons: Annotated[bool, typer.Option("--polygons", help="coco: polygons instead of run lengths.")] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Export a dataset that is not finished, as far as it is.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write a dataset as COCO, PASCAL VOC, YOLO or Hugging Face parquet; the same command goes on after a stop.

    Example: factory export out/ --format coco

    Example: factory export out/ --format yolo --to pets-yolo --val 0.1
    """
    from factory.cli.progress import progress_bar
    from factory.dataset.storage import Store
    from factory.export.run import Export, Options, default_target
    from factory.files.paths import local_path

    target = local_path(to, "--to") if to else default_target(folder, form)
    job = Export(Store(folder), target, Options(form, val, polygons), partial)
    with progress_bar("exporting samples", job.samples, as_json) as show:
        summary = job.run(show)
    if as_json:
        typer.echo(dumps(vars(summary)))
        return
    typer.echo(f"{summary.to}: {summary.train} samples for training, {summary.val} for validation.")
    if not summary.complete:
        shards = f"{summary.shards} of {summary.shards_planned} shards"
        typer.echo(f"The dataset is not finished, this export holds {shards}; the same command adds the others later.")
