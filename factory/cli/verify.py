"""`factory verify`: check a set from the bytes up, and mend it."""

from typing import Annotated, Any

import typer

from factory.valid_json import dumps

_DAMAGED = 5


def verify(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder or URL of a set.")],
    repair: Annotated[bool, typer.Option("--repair", help="Make again what is damaged or missing.")] = False,
    workers: Annotated[int | None, typer.Option(help="Workers of a repair; as the recipe says by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Re-hash every shard and check all that a reader relies on: keys, members, masks, ids, areas, duplicates.

    Example: factory verify out/

    Example: factory verify out/ --repair

    Exit codes: 0 sound, 2 bad input, 5 damaged (and not repaired).
    """
    from factory.store import Store
    from factory.verify import verify as check

    store = Store(folder)
    report = check(store)
    mended = _repair(store, report, workers, as_json) if repair and (report.damaged or report.missing) else None
    data: dict[str, Any] = {
        "shards": report.shards,
        "samples": report.samples,
        "missing": report.missing,
        "damaged": {str(number): problems for number, problems in report.damaged.items()},
        "strays": report.strays,
        "repaired": mended,
        "sound": report.sound or mended is not None,
    }
    typer.echo(dumps(data) if as_json else as_text(data))
    raise typer.Exit(0 if data["sound"] else _DAMAGED)


def _repair(store: Any, report: Any, workers: int | None, quiet: bool) -> list[int]:
    from factory.cli.view import watching
    from factory.dataset import recipe_of
    from factory.generate import generate
    from factory.verify import mend
    from factory.verify import verify as check

    again = mend(store, report)
    recipe = recipe_of(store)
    engine = recipe.engine.model_copy(update={"workers": workers} if workers else {})
    with watching(quiet) as watch:
        generate(recipe.model_copy(update={"engine": engine}), store, watch=watch)
    after = check(store)
    if after.damaged:
        raise RuntimeError(f"shards {sorted(after.damaged)} are damaged again right after they were made")
    return sorted({*again, *report.only_manifest, *report.missing})


def as_text(data: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{data['shards']} shards with {data['samples']} samples checked."]
    for number, problems in data["damaged"].items():
        lines += [f"shard {number}: {problem}" for problem in problems]
    if data["missing"]:
        lines.append(f"{len(data['missing'])} shards are not made yet.")
    if data["repaired"] is not None:
        lines.append(f"Made again: shards {', '.join(map(str, data['repaired']))}. The set is sound.")
    elif data["sound"]:
        lines.append("All of them are sound.")
    else:
        lines.append(f"{len(data['damaged'])} shards are damaged; `factory verify --repair` makes them again.")
    return "\n".join(lines)
