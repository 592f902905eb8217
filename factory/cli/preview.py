"""`factory preview`: a contact sheet of a dataset."""

from pathlib import Path
from typing import Annotated

import typer

from factory.cli.messages import to_stdout
from factory.cli.shared_options import AsJson, Dataset
from factory.files.strict_json import dumps


def preview(
    dataset: Dataset,
    out: Annotated[Path, typer.Option(help="Image file to write.")] = Path("sheet.png"),
    n: Annotated[int, typer.Option("--n", min=1, help="Number of samples to show.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Draw the first samples of a dataset next to their masks, as one image.

    Example: factory preview out/ --out sheet.png
    """
    from factory.dataset.preview import preview_image
    from factory.dataset.storage import Store
    from factory.errors import not_written
    from factory.files.atomic import write_atomically
    from factory.files.paths import check_image_file

    check_image_file(out, "--out")
    image = preview_image(Store(dataset), n, out.suffix)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, image)
    except OSError as error:
        raise not_written(out, error, "give another --out") from error
    to_stdout(dumps({"out": str(out)}) if as_json else str(out))
