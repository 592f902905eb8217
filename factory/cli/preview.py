"""`factory sheet`: a picture of a dataset."""

from pathlib import Path
from typing import Annotated

import typer

from factory.files.strict_json import dumps


def sheet(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder or URL of a dataset.")],
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("sheet.png"),
    n: Annotated[int, typer.Option("--n", help="Samples shown.")] = 24,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Draw the first samples of a dataset beside their masks, and print the picture's path.

    Example: factory sheet out/ --out sheet.png
    """
    from factory.dataset.preview import preview_image
    from factory.dataset.storage import Store
    from factory.errors import UserError

    picture = preview_image(Store(folder), n, out.suffix)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(picture)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}.") from error
    typer.echo(dumps({"sheet": str(out)}) if as_json else str(out))
