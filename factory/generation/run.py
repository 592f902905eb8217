"""Generates a dataset: recipe, plan, missing shards, engine, and the final statement."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass

from factory import exit_codes
from factory.config.plan import Plan
from factory.config.recipe import Recipe
from factory.dataset.lease import HeldLease, leased
from factory.dataset.receipts import missing, tags
from factory.dataset.state import Totals, existing_recipe, init_or_resume, put_progress, write_statement
from factory.dataset.storage import Store
from factory.engine.capacity import Capacity
from factory.engine.cluster import connected
from factory.engine.pool import Pool
from factory.engine.scheduler import Scheduler, State
from factory.engine.view import ClusterView
from factory.generation.pin import pin_recipe
from factory.generation.preflight import preflight
from factory.generation.progress import Snapshot, Tracker
from factory.generation.reporter import Reporter, Watch, quarantined
from factory.generation.run_metrics import RunMetrics, linger
from factory.generation.shard_job import ContentJob

_log = logging.getLogger("factory.generation.run")


@dataclass(frozen=True)
class RunSummary:
    """The result of a run. `totals` covers the whole dataset, `last` this run."""

    totals: Totals
    last: Snapshot
    seconds: dict[str, float]
    recipe: Recipe

    @property
    def exit_code(self) -> int:
        """0 if the dataset is complete; otherwise the code for what is missing."""
        if self.last.quarantined:
            return exit_codes.GIVEN_UP
        return exit_codes.EXHAUSTED if self.totals.exhausted else exit_codes.DONE


def generate(
    recipe: Recipe,
    store: Store,
    extend: bool = False,
    watch: Watch = lambda snapshot: None,
    force: bool = False,
    held: HeldLease | None = None,
) -> RunSummary:
    """Start or resume a dataset and run until it is complete. `watch` receives a snapshot at least every half second.

    Only one driver may work on a dataset: LeaseHeldError names an active one, unless `force` takes over from it. `held`
    is a lease that the caller already holds. KeyboardInterrupt propagates after shards in progress had `engine.grace`
    seconds to finish; committed shards are kept, and the same call resumes.
    """
    linger()  # an invalid value is reported before any work
    recipe = pin_recipe(recipe, existing_recipe(store))
    preflight(recipe)
    with nullcontext(held) if held else leased(store, force, _log.warning) as lease:
        recipe = init_or_resume(store, recipe, extend)
        plan = Plan(recipe)
        done = set(tags(store, len(plan)))
        tracker, state = Tracker(plan, done), State(len(plan))
        todo = missing(plan, done)
        if todo:
            state = _run(recipe, store, todo, tracker, watch, lease)
        totals = write_statement(store, recipe)
        last = tracker.snapshot(state, "done" if totals.shards == len(plan) else "incomplete")
        put_progress(store, last.to_dict())
    watch(last)
    return RunSummary(totals, last, state.seconds, recipe)


def _run(recipe: Recipe, store: Store, todo: list[int], tracker: Tracker, watch: Watch, lease: HeldLease) -> State:
    engine, threads = recipe.engine, recipe.generator.threads
    given_up = quarantined(store)
    job = ContentJob(recipe, store)
    detectors = engine.detectors if recipe.uses_detector() else 0
    with connected(engine, threads), ClusterView(Capacity(engine, threads, job.memory())) as view:
        pool = Pool(job, view.share, detectors, engine.gpus_per_detector)
        reporter = Reporter(store, tracker, watch, lease, given_up)
        scheduler = Scheduler(pool, todo, view, engine, reporter.as_listener())
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
            run_metrics.close(complete=status == "finishing" and not scheduler.state.quarantined)
    return state
