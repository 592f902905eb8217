"""The steps of a night, which run under its lease. Each takes the record of the night and returns a new one."""

import datetime
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from factory.config.differences import changed_sizes, differences
from factory.config.plan import Plan
from factory.config.recipe import Recipe
from factory.dataset.lease import HeldLease
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import existing_recipe
from factory.dataset.totals import Totals, current_totals
from factory.dataset.verify import verify
from factory.engine.state import State
from factory.errors import UserError
from factory.generation.progress import Snapshot
from factory.generation.run import RunSummary, prepare, run_prepared
from factory.generation.shard_job import versions
from factory.nightly.budget import first_period, limit_of, now, with_lost_usage, with_seconds, with_usage
from factory.nightly.config import VerifySample
from factory.nightly.context import NightContext
from factory.nightly.exports import export_night
from factory.nightly.latest import latest_night
from factory.nightly.preflight import check_disk, check_gpu_budget, estimated_size
from factory.nightly.record import REPORT, Before, Exported, Night, Period, Reported, Verified, readable_nights
from factory.nightly.totals import with_totals, without_others
from factory.report.drift import LEARNING_NIGHTS
from factory.report.run import DATA, write_report


def prepare_night(context: NightContext, night: Night | None) -> tuple[Recipe, Totals]:
    """(recipe with pinned models, totals of the dataset so far), after all checks that need no cluster.

    Nothing is written. Raises UserError for everything that would end the night later.
    """
    recipe = prepare(context.recipe, context.dataset)
    existing = existing_recipe(context.dataset)
    totals = Totals()
    if existing is not None:
        totals = current_totals(context.dataset, Plan(existing))
        recipe = recipe.model_copy(update={"format": existing.format})
        _check_same_recipe(context, recipe, existing, totals)
    if night is not None and night.mode != context.config.mode:
        raise UserError(
            f"the night of {context.date} was started in mode {night.mode}, and the configuration says "
            f"{context.config.mode}; restore the mode, or give another --date or `root`."
        )
    new_samples = min(recipe.n - totals.planned, context.config.samples_per_night() or recipe.n)
    size = _bytes_per_sample(context, recipe, totals)
    new_exports = [
        format_name for format_name in context.config.exports if night is None or format_name not in night.exports
    ]
    check_disk(context.root, size, totals.accepted, new_samples, new_exports)
    check_gpu_budget(recipe.engine, context.config.budget)
    return recipe, totals


def _check_same_recipe(context: NightContext, recipe: Recipe, existing: Recipe, totals: Totals) -> None:
    """UserError if the dataset has another recipe and at least one finished shard. Without one, it is started again."""
    changed = differences(existing, recipe) + changed_sizes(existing, recipe)
    if context.config.mode == "fresh" and recipe.n != existing.n:
        changed.append(f"n: {existing.n} -> {recipe.n}")
    if changed and totals.shards:
        raise UserError(
            f"{context.dataset.address} was made with a different recipe: {'; '.join(changed)}. Restore the recipe, "
            f"or give another --date or `root`."
        )
    if recipe.n < existing.n and totals.shards:
        raise UserError(
            f"{context.dataset.address} has n = {existing.n}, which is more than the target {recipe.n}; a dataset "
            f"cannot shrink."
        )


def _bytes_per_sample(context: NightContext, recipe: Recipe, totals: Totals) -> float:
    """The bytes per sample, measured on the dataset or on the last successful night, or else estimated."""
    if totals.accepted:
        return totals.bytes / totals.accepted
    last = latest_night(context.root)
    return last.total_bytes / last.samples if last is not None and last.samples else estimated_size(recipe)


def start_night(context: NightContext, night: Night | None, recipe: Recipe, totals: Totals) -> Night:
    """The record of a night that starts, or that continues after an interruption, a failure or a used-up budget."""
    current = now()
    if night is None or night.runs == 0:
        night = Night(
            date=context.date,
            state="running",
            mode=context.config.mode,
            config=context.digest,
            dataset=context.dataset_name,
            started=night.started if night is not None else current,
            updated=current,
            period=first_period(night),
            n=recipe.n,
            before=Before(samples=totals.accepted, planned=totals.planned, attempts=totals.attempts),
        )
    elif night.good:
        night = without_others(night, totals).changed(period=Period(started=current))
    else:
        night = without_others(with_lost_usage(night, context.dataset), totals)
    return night.changed(
        state="running",
        config=context.digest,
        fingerprint=recipe.fingerprint(),
        n=recipe.n,
        updated=current,
        counted=False,
        totalled=False,
        runs=night.runs + 1,
        price_per_gpu_hour=context.config.price_per_gpu_hour,
        versions=versions(),
        exit_code=None,
        error=None,
    )


class Generation:
    """Generates the samples of a night.

    `night` includes the usage of workers and GPUs, even after an interruption. `expired` is whether earlier runs had
    used up the budget.
    """

    def __init__(self, context: NightContext, night: Night, recipe: Recipe, totals: Totals) -> None:
        self._context, self.night, self._recipe, self._totals = context, night, recipe, totals
        self._last: Snapshot | None = None
        self.expired = False

    def run(self, lease: HeldLease) -> RunSummary:
        """Generate until the night is done or its budget is used up; then no Ray is started."""
        config = self._context.config
        limit = limit_of(config.budget, self.night.period, self._context.zone)
        samples = config.samples_per_night()
        if samples is not None:
            samples = max(0, samples - (self._totals.planned - self.night.before.planned))
        self.expired = limit.reached(State(0))
        if self.expired:
            samples = 0
        extend = config.mode == "grow"
        try:
            summary = run_prepared(self._recipe, self._context.dataset, lease, extend, self._watch, limit, samples)
        finally:
            if self._last is not None:
                used = self._last
                self.night = with_usage(self.night, used.seconds, used.gpu_seconds, used.worker_seconds)
        last = summary.last
        self.night = with_totals(self.night, summary.totals).changed(
            fingerprint=summary.recipe.fingerprint(),
            quarantined=tuple(last.quarantined),
            lost_workers=self.night.lost_workers + last.lost_workers,
        )
        return summary

    def _watch(self, snapshot: Snapshot) -> None:
        self._last = snapshot
        self._context.watch(snapshot)


def verify_night(context: NightContext, night: Night) -> Night:
    """Verify all shards, or the sample that the date selects and the shards that were found damaged before."""
    setting = context.config.verify
    existing = 0

    def choose(numbers: list[int]) -> list[int]:
        nonlocal existing
        existing = len(numbers)
        if not isinstance(setting, VerifySample):
            return numbers
        return sorted({*sampled(numbers, setting.shards, context.date), *_known_damage(context).intersection(numbers)})

    context.log(f"verifying {context.dataset.address}")
    with _timed() as elapsed:
        report = verify(context.dataset, choose=choose)
    result = Verified(shards=report.shards, of=existing, damaged=tuple(sorted(report.damaged)), at=now())
    return night.changed(verified=result, seconds=with_seconds(night, "verify", elapsed()))


def _known_damage(context: NightContext) -> set[int]:
    """The shards of the dataset that were damaged when a night verified them last."""
    nights = readable_nights(context.root).values()
    return {shard for night in nights if night.dataset == context.dataset_name for shard in night.damaged}


def sampled(numbers: list[int], count: int, date: datetime.date) -> list[int]:
    """A selection of shards that depends on the date and the numbers alone, in ascending order."""

    def rank(number: int) -> bytes:
        return hashlib.sha256(f"{date.isoformat()} {number}".encode()).digest()

    return sorted(sorted(numbers, key=rank)[:count])


def export_formats(context: NightContext, night: Night, lease: HeldLease, save: Callable[[Night], Night]) -> Night:
    """Export the dataset in every format whose export does not cover all finished shards yet, and record it.

    Returns the record.
    """
    for format_name in context.config.exports:
        before = night.exports.get(format_name)
        if before is not None and before.shards == night.shards:
            continue
        lease.confirm()
        with _timed() as elapsed:
            folder = f"{context.folder}/exports/{format_name}"
            done: Exported = export_night(
                context.root, context.dataset, folder, format_name, context.log, lease.confirm
            )
        exports = {**night.exports, format_name: done}
        night = save(night.changed(exports=exports, seconds=with_seconds(night, "export", elapsed())))
    return night


def write_night_report(context: NightContext, night: Night, save: Callable[[Night], Night]) -> None:
    """Write the report of the night, unless the existing one covers all finished shards, and record it.

    Drift is measured against the last successful nights that have a report.
    """
    if night.report is not None and night.report.shards == night.shards:
        return
    folder = f"{context.folder}/{REPORT}"
    target = context.root.below(folder)
    context.log(f"writing {target.address}")
    with _timed() as elapsed:
        data = write_report(context.dataset, target, _earlier_reports(context), name=context.folder)
    verdict = data["verdict"]
    report = Reported(path=folder, shards=night.shards, level=verdict["level"], sentence=verdict["sentence"])
    save(night.changed(report=report, seconds=with_seconds(night, "report", elapsed())))


def _earlier_reports(context: NightContext) -> list[tuple[Store, str]]:
    """The report.json of the successful nights before this one, oldest first."""
    nights = [night for date, night in sorted(readable_nights(context.root).items()) if date < context.date]
    paths = [night.report.path for night in nights if night.good and night.report is not None]
    return [(context.root, f"{path}/{DATA}") for path in paths[-LEARNING_NIGHTS:]]


@contextmanager
def _timed() -> Iterator[Callable[[], float]]:
    """Yield a function that returns the seconds since the start of the block."""
    start = time.monotonic()
    yield lambda: time.monotonic() - start
