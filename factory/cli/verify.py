"""`factory verify`: checks every byte of a dataset, and repairs it."""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory import exit_codes
from factory.cli.messages import to_stderr, to_stdout
from factory.cli.shared_options import AsJson, Dataset, Force
from factory.errors import UserError, command, counted, first_few
from factory.files.strict_json import dumps

if TYPE_CHECKING:
    from factory.dataset.lease import HeldLease
    from factory.dataset.storage import Store
    from factory.dataset.verify import Report


def verify(
    dataset: Dataset,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Generate damaged and missing shards again (in an unfinished dataset of factory nightly, only damaged "
            "ones); rejected while a run is active.",
        ),
    ] = False,
    force: Force = False,
    workers: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Workers for the repair; by default, as in the recipe.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every byte of a dataset; with --repair, generate again what is damaged or missing.

    Checks digests, keys, members, masks, ids, areas and duplicates.

    Example: factory verify out/

    Example: factory verify out/ --repair

    Exit codes: 0 all existing shards are sound, 2 invalid input, 3 the repair failed for some shards, 5 damaged, 75
    temporary failure.
    """
    from factory.dataset.continuation import night_options
    from factory.dataset.description import complete_description
    from factory.dataset.lease import leased
    from factory.dataset.storage import Store
    from factory.dataset.stored_recipe import recipe_of
    from factory.dataset.verify import verify as check

    if not repair and (force or workers is not None):
        option = "--force" if force else f"--workers {workers}"
        raise UserError(f"{option} has no effect without --repair; add --repair, or leave {option} out.")
    store = Store(dataset)
    recipe = recipe_of(store)  # raises before a lease is written where there is no dataset
    # The lease is held during the check too, because files that an active run is writing look like orphans.
    with leased(store, force, to_stderr) if repair else contextlib.nullcontext() as lease:
        # A nightly job generates its missing shards within its budget; a dataset of mode `grow` may lack nearly all.
        generates_missing = repair and night_options(store) is None
        report = check(store)
        tried, repaired = set[int](), None
        missing = report.missing if generates_missing else []
        if lease is not None and (report.damaged or missing or report.orphans):
            tried = _repair(store, report, missing, workers, as_json, lease)
            report = check(store)
            repaired = tried - set(report.missing) - set(report.damaged)
        if lease is not None and report.sound:
            complete_description(store, recipe, lease.confirm)
    data: dict[str, Any] = {
        "shards": report.shards,
        "shards_planned": report.planned,
        "samples": report.samples,
        "missing": report.missing,
        "damaged": {str(number): problems for number, problems in report.damaged.items()},
        "orphans": list(report.orphans),
        "foreign": report.foreign,
        "repaired": None if repaired is None else sorted(repaired),
        "sound": report.sound,
    }
    failed = sorted(tried & set(report.missing))
    to_stdout(dumps(data) if as_json else as_text(data, dataset, failed))
    if not report.sound:
        raise typer.Exit(exit_codes.DAMAGED)
    raise typer.Exit(exit_codes.FAILED if failed else exit_codes.DONE)


def _repair(
    store: "Store", report: "Report", missing: list[int], workers: int | None, quiet: bool, lease: "HeldLease"
) -> set[int]:
    """Generate damaged and missing shards again; returns the shards it tried, which another check must confirm.

    Raises UserError before anything is deleted if the recipe cannot be run here, for example without its model.
    """
    from factory.cli.view import watching
    from factory.dataset.repair import repair
    from factory.dataset.stored_recipe import recipe_of
    from factory.generation.hardware import check_engine
    from factory.generation.inversion_recipe import check_labels
    from factory.generation.run import check_folders, generate, prepare

    recipe = recipe_of(store)
    engine = recipe.engine.model_copy(update={} if workers is None else {"workers": workers})
    recipe = recipe.model_copy(update={"engine": engine})
    check_folders(store)
    if missing or report.orphans or set(report.damaged) - set(report.only_manifest):
        check_engine(recipe)
        prepare(recipe, store)
        if recipe.real is not None:
            check_labels(recipe)
    done = repair(store, report, lease.confirm)
    again = {*done.deleted, *missing, *report.orphans.values()}
    if done.deleted or done.orphans or missing:
        with watching(quiet) as watch:
            summary = generate(recipe, store, watch=watch, held=lease, labels_checked=True, only=again)
        if summary.interrupted:
            raise KeyboardInterrupt
    return {*done.rewritten, *again}


def as_text(data: dict[str, Any], dataset: str, failed: Sequence[int] = ()) -> str:
    """The report of a dataset as text; `failed` are the shards that a repair could not generate."""
    lines = [f"shard {number}: {problem}" for number, problems in data["damaged"].items() for problem in problems]
    after_repair = data["repaired"] is not None
    if after_repair:
        word = "shard" if len(data["repaired"]) == 1 else "shards"
        lines.append(f"Repaired {word}: {', '.join(map(str, data['repaired'])) or 'none'}.")
    sound = counted(data["shards"] - len(data["damaged"]), "is", "are")
    samples = counted(data["samples"], "sample")
    lines.append(f"{data['shards']} of {data['shards_planned']} shards exist, with {samples}; {sound} sound.")
    damaged, fix = counted(len(data["damaged"]), "shard is", "shards are"), command("verify", dataset, "--repair")
    if data["damaged"] and after_repair:
        lines.append(f"{damaged} still damaged after the repair; see the lines above.")
    elif data["damaged"]:
        lines.append(f"{damaged} damaged; repair the dataset with {fix}.")
    if failed:
        lines.append(f"Missing after the repair: shards {first_few(failed)}; see quarantine/ for the reasons.")
    elif data["missing"]:
        missing = counted(len(data["missing"]), "shard does", "shards do")
        lines.append(f"{missing} not exist yet: {first_few(data['missing'])}.")
    if data["orphans"]:
        lines.append(
            f"{counted(len(data['orphans']), 'file has', 'files have')} no receipt: {first_few(data['orphans'])}. "
            f"Either a run is active, or one was interrupted; in the second case, {fix} generates these shards again."
        )
    if data["foreign"]:
        foreign = counted(len(data["foreign"]), "file does", "files do")
        lines.append(f"{foreign} not belong to the dataset: {first_few(data['foreign'])}.")
    return "\n".join(lines)
