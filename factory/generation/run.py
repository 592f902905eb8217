"""Generates a dataset: prepares the recipe, runs the missing shards, and writes dataset.json and the card."""

import logging
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate

from factory import exit_codes
from factory.config.differences import differences
from factory.config.plan import Plan
from factory.config.recipe import FORMAT, Recipe
from factory.dataset.description import renew_description, write_description
from factory.dataset.lease import HeldLease, leased
from factory.dataset.progress_file import put_progress
from factory.dataset.receipts import check_same_recipe, missing_shards, receipt_tags
from factory.dataset.storage import Store
from factory.dataset.storage_folder import delete_abandoned
from factory.dataset.stored_recipe import existing_recipe, init_or_resume
from factory.dataset.totals import Totals, finished_entries, totals_of
from factory.engine.capacity import Capacity
from factory.engine.cluster import connected
from factory.engine.pool import Pool
from factory.engine.scheduler import Scheduler
from factory.engine.state import Limit, State
from factory.engine.view import ClusterView
from factory.errors import UserError, counted
from factory.files.paths import check_writable_folder
from factory.generation.hardware import check_engine, for_hardware
from factory.generation.inversion_recipe import check_labels
from factory.generation.pin import pin_recipe
from factory.generation.preflight import preflight
from factory.generation.progress import Snapshot, Tracker
from factory.generation.reporter import Reporter, Watch, forget_finished, quarantined
from factory.generation.run_metrics import RunMetrics, linger
from factory.generation.shard_job import ShardJob

_log = logging.getLogger("factory.generation.run")
_IN_ALL_FORMATS = ("classes", "seed", "objects", "shard_size", "prompts", "prompt_style", "cooccurrence")


@dataclass(frozen=True)
class RunSummary:
    """The result of a run.

    Attributes:
        totals: Totals of the whole dataset.
        last: The last snapshot of this run.
        seconds: Seconds of work of this run by step.
        recipe: The recipe of the dataset, with pinned models.
        limited: Whether the run ended at its limit with shards left; used by `factory nightly`.
        lost: Shards whose receipts were deleted by another program during the run.
        interrupted: Whether a signal arrived when no shard was left, for callers that have more to do.
    """

    totals: Totals
    last: Snapshot
    seconds: dict[str, float]
    recipe: Recipe
    limited: bool = False
    lost: int = 0
    interrupted: bool = False

    @property
    def lost_text(self) -> str:
        """A sentence about the lost shards."""
        return f"{counted(self.lost, 'shard is', 'shards are')} missing: receipts were deleted during the run."

    @property
    def is_empty(self) -> bool:
        """Whether every sample was rejected in every attempt, so that the dataset has no samples."""
        return self.totals.exhausted > 0 and self.totals.accepted == 0

    @property
    def exit_code(self) -> int:
        """The exit code with which `factory generate` ends after this run; see `factory.exit_codes`."""
        if self.last.quarantined:
            return exit_codes.FAILED
        if self.lost:
            return exit_codes.TRY_AGAIN
        if self.is_empty:
            return exit_codes.FAILED
        return exit_codes.EXHAUSTED if self.totals.exhausted else exit_codes.DONE


def generate(
    recipe: Recipe,
    store: Store,
    extend: bool = False,
    watch: Watch = lambda snapshot: None,
    force: bool = False,
    held: HeldLease | None = None,
    labels_checked: bool = False,
    only: Collection[int] | None = None,
) -> RunSummary:
    """Start or resume a dataset and run until it is complete. `watch` receives snapshots; see `factory.generate`.

    Only one driver may work on a dataset: LeaseHeldError names an active one, unless `force` takes over from it. `held`
    is a lease that the caller already holds. `labels_checked` means that the caller has just read the labels of real
    images; otherwise, they are compared with the recipe. `only` are the shards to generate; all missing ones by
    default. KeyboardInterrupt propagates after shards in progress had `engine.grace` seconds to finish; committed
    shards are kept, and the same call resumes. Raises UserError if shards of an older format are missing, because this
    version cannot generate them.
    """
    existing = existing_recipe(store)
    if extend and existing is None:
        raise UserError(
            f"there is no dataset to extend at {store.address}; correct the address, or create it without --extend."
        )
    if existing is not None and existing.format < FORMAT:
        with nullcontext(held) if held else leased(store, force, _log.warning):
            return _complete_older(existing, recipe, store)
    recipe = prepare(recipe, store)
    if recipe.real is not None and not labels_checked and _has_work(recipe, existing, store):
        check_labels(recipe)
    with nullcontext(held) if held else leased(store, force, _log.warning) as lease:
        return run_prepared(recipe, store, lease, extend, watch, only=only)


def _has_work(recipe: Recipe, existing: Recipe | None, store: Store) -> bool:
    """Whether a run with this recipe has shards to generate; `existing` is the recipe of the dataset, if any."""
    if existing is None or recipe.n > existing.n:
        return True
    plan = Plan(existing)
    return bool(missing_shards(plan, receipt_tags(store, len(plan))))


def prepare(recipe: Recipe, store: Store) -> Recipe:
    """The recipe with pinned models, checked as far as possible without loading them; nothing is written.

    Raises UserError for everything that would stop the workers.
    """
    linger()  # an invalid value is reported before any work
    existing = existing_recipe(store)
    check_format(existing or recipe, store.address)
    check_format(recipe, store.address)
    if _has_work(recipe, existing, store):  # a complete dataset needs no worker
        check_engine(recipe)
        check_folders(store)
    recipe = pin_recipe(recipe, existing)
    preflight(recipe, resumed=existing is not None and existing.generator.revision is not None)
    return for_hardware(recipe, existing)


def run_prepared(
    recipe: Recipe,
    store: Store,
    lease: HeldLease,
    extend: bool = False,
    watch: Watch = lambda snapshot: None,
    limit: Limit | None = None,
    samples: int | None = None,
    only: Collection[int] | None = None,
) -> RunSummary:
    """As `generate`, for a prepared recipe and a lease that the caller holds.

    The run also ends at its `limit`, or after the shards that contain at least `samples` more samples.
    """
    lease.confirm()  # the files of a dataset without shards are deleted if the recipe has changed
    recipe = init_or_resume(store, recipe, extend, lease.confirm)
    _delete_abandoned(store)  # they may be what fills the disk
    plan = Plan(recipe)
    entries = finished_entries(store, plan, save=True)
    forget_finished(store, entries)
    all_missing = missing_shards(plan, entries)
    todo = [number for number in all_missing if only is None or number in only]
    if samples is not None:
        todo = _first_shards(plan, todo, samples)
    tracker, state = Tracker(plan, todo, totals_of(entries)), State(len(plan))
    if todo:
        lease.confirm()
        renew_description(store, plan, entries)
        state = _run(recipe, store, todo, tracker, watch, lease, limit)
    lease.confirm()  # another driver may have extended the dataset, and its description must not be replaced
    totals = write_description(store, recipe)
    _delete_abandoned(store)
    last = tracker.snapshot(state, "done" if totals.shards == len(plan) else "incomplete")
    last = replace(last, accepted=totals.accepted, shards_done=totals.shards)  # receipts may have been deleted
    put_progress(store, {**last.to_dict(), "driver": lease.holder})
    watch(last)
    finished = state.shards_done if state.limited else len(todo) - len(state.quarantined)
    lost = max(0, len(entries) + finished - totals.shards)
    limited = state.limited or len(todo) < len(all_missing)
    return RunSummary(totals, last, state.seconds, recipe, limited, lost, state.interrupted)


def _delete_abandoned(store: Store) -> None:
    """Delete the temporary files of killed workers; a bucket has none."""
    if store.folder is not None:
        delete_abandoned(store.folder)


def check_folders(store: Store) -> None:
    """Raise UserError if shards cannot be written to a dataset in a folder, before anything is deleted.

    A folder of it may be a link to a disk that is not mounted, whose files then look like missing ones.
    """
    if store.folder is not None:
        for name in ("train", "manifest", "receipts"):
            check_writable_folder(store.folder / name, "the dataset folder")


def check_format(recipe: Recipe, where: str) -> None:
    """Raise UserError if this version cannot generate the samples of a recipe. `where` is used in the message."""
    if recipe.format < FORMAT:
        raise UserError(
            f"the recipe for {where} has format {recipe.format}; this version samples images and reads masks "
            f"differently and generates format {FORMAT} only, so missing shards cannot be reproduced. Finished shards "
            f"can still be read, verified, exported and used for training. Generate a new dataset elsewhere; in a "
            f"recipe file, remove `format` and replace masks.capture and masks.timesteps by masks.noise_level (0.256 "
            f"for timestep 100)."
        )


def _complete_older(existing: Recipe, recipe: Recipe, store: Store) -> RunSummary:
    """The summary of a complete dataset of an older format, whose description and card are written again."""
    changed = _changed_since(existing, recipe)
    if changed:
        raise UserError(
            f"{store.address} was created with a different recipe: {'; '.join(changed)}. Give the same options, or "
            f"another --shards to create a new dataset."
        )
    plan = Plan(existing)
    done = set(receipt_tags(store, len(plan)))
    check_same_recipe(store, existing.fingerprint(), sorted(done))
    if missing_shards(plan, done) or recipe.n > existing.n:
        check_format(existing, store.address)
    totals = write_description(store, existing)
    return RunSummary(totals, Tracker(plan, (), totals).snapshot(State(len(plan)), "done"), {}, existing)


def _changed_since(existing: Recipe, recipe: Recipe) -> list[str]:
    """What a recipe changes in one of an older format, apart from fields whose meaning or default changed."""
    changed = differences(existing, recipe.model_copy(update={"format": existing.format}))
    changed = [line for line in changed if line.partition(":")[0].partition(".")[0] in _IN_ALL_FORMATS]
    return changed + ([f"n: {existing.n} -> {recipe.n}"] if recipe.n < existing.n else [])


def _first_shards(plan: Plan, shards: list[int], samples: int) -> list[int]:
    """The first shards whose planned samples add up to at least `samples`."""
    sizes = (stop - start for start, stop in map(plan.bounds, shards))
    before = accumulate(sizes, initial=0)
    return [shard for shard, total in zip(shards, before, strict=False) if total < samples]


def _run(
    recipe: Recipe,
    store: Store,
    todo: list[int],
    tracker: Tracker,
    watch: Watch,
    lease: HeldLease,
    limit: Limit | None,
) -> State:
    engine, threads = recipe.engine, recipe.generator.threads
    already_quarantined = quarantined(store)
    job = ShardJob(recipe, store)
    detectors = engine.detectors if recipe.uses_detector() else 0
    watch(tracker.snapshot(State(len(todo)), "starting"))
    with connected(engine, threads), ClusterView(Capacity(engine, threads, job.memory(), detectors)) as view:
        pool = Pool(job, view.request, detectors, engine.gpus_per_detector)
        reporter = Reporter(store, tracker, watch, lease, already_quarantined)
        scheduler = Scheduler(pool, todo, view, engine, reporter.as_listener(), limit)
        run_metrics, status = RunMetrics(store.address, lease, scheduler.state), "failed"
        try:
            state = scheduler.run()
            status = "finishing"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            pool.close()
            reporter.close(tracker.snapshot(scheduler.state, status))
            complete = status == "finishing" and not scheduler.state.quarantined
            scheduler.state.interrupted |= run_metrics.close(complete)
    return state
