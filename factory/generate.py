"""Make a set: recipe, plan, what is missing of it, the engine, and the statement at the end."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from factory import exit_codes
from factory.dataset import Totals, begin, put_progress, recipe_begun, write_statement
from factory.engine.capacity import Capacity
from factory.engine.cluster import connected
from factory.engine.content import ContentJob
from factory.engine.pool import Pool
from factory.engine.scheduler import Scheduler, State
from factory.engine.view import ClusterView
from factory.errors import UserError
from factory.generator.load import EMBEDDED, model_folder, pin_generator
from factory.grounder.folder import check_fits, grounder_folder, pin_grounder, read_config
from factory.lease import Held, leased
from factory.plan import Plan
from factory.produce.components import SOURCES, check_source
from factory.produce.preflight import preflight
from factory.progress import Snapshot, Tracker
from factory.receipts import missing, tags
from factory.recipe import Recipe
from factory.recipe_parts import GeneratorRecipe, MaskRecipe
from factory.reporter import Reporter, Watch, quarantined
from factory.store import Store
from factory.vocabulary import coco

_log = logging.getLogger("factory.generate")


@dataclass(frozen=True)
class Summary:
    """How a run ended. `totals` is over the whole set, `last` over this run."""

    totals: Totals
    last: Snapshot
    seconds: dict[str, float]
    recipe: Recipe

    @property
    def exit_code(self) -> int:
        """0, or what is missing."""
        if self.last.quarantined:
            return exit_codes.GIVEN_UP
        return exit_codes.SHORT if self.totals.short else exit_codes.DONE


def pinned(recipe: Recipe, begun: Recipe | None = None) -> Recipe:
    """The recipe with the revisions of its models, and with all that a worker would find wrong said before.

    `begun` is the recipe of an unfinished dataset: the hub is not asked for what it has pinned already.
    """
    if begun is not None:
        recipe = _pinned_before(recipe, begun)
    if recipe.real is None:
        check_source(recipe.masks.source)
    _check_embedded_classes(recipe)
    generator, masks = pin_generator(recipe.generator), recipe.masks
    if uses_detector(recipe):
        from factory.detector.load import pinned_detector

        masks = pinned_detector(recipe)
    if masks.source not in (*SOURCES, "labels"):
        masks = _pinned_grounder(masks, generator)
    return recipe.model_copy(update={"generator": generator, "masks": masks})


def _pinned_before(recipe: Recipe, begun: Recipe) -> Recipe:
    """The recipe with the pins of the dataset, for models of the hub that are the same in both.

    A new commit on the hub between two runs must not stop the second, and neither must a hub that cannot be reached.
    The files of a folder are looked at again: they may have been changed in place.
    """
    generator, masks = recipe.generator, recipe.masks
    same = generator.model == begun.generator.model and generator.model.count("/") == 1
    if generator.revision is None and same and model_folder(generator.model) is None:
        generator = generator.model_copy(update={"revision": begun.generator.revision})
    same = masks.detector == begun.masks.detector and masks.detector.count("/") == 1 and ":" not in masks.detector
    if masks.detector_revision is None and same and not Path(masks.detector).expanduser().exists():
        masks = masks.model_copy(update={"detector_revision": begun.masks.detector_revision})
    return recipe.model_copy(update={"generator": generator, "masks": masks})


def _pinned_grounder(masks: MaskRecipe, generator: GeneratorRecipe) -> MaskRecipe:
    """The grounder's digest, and where it reads its features; UserError where it does not fit the model."""
    folder = grounder_folder(masks.source)
    config = read_config(folder)
    check_fits(masks.source, config, generator)
    where = {"capture": config.capture, "timesteps": (config.timestep,)}
    named = masks.source if masks.source == EMBEDDED else str(folder.absolute())
    return masks.model_copy(update={"source": named, "grounder_revision": pin_grounder(masks.source), **where})


def _check_embedded_classes(recipe: Recipe) -> None:
    """UserError where the embedded models are to make or find what they never saw."""
    embedded = [recipe.generator.model, *([recipe.masks.detector] if uses_detector(recipe) else [])]
    if "stickers" not in embedded:
        return
    for entry in recipe.vocabulary().classes:
        try:
            coco().resolve(entry.display)
        except UserError as error:
            raise UserError(
                f"{error} The embedded models know the 80 classes of COCO only; for others give --model a folder or a "
                f"hub id, with --masks attention."
            ) from None


def uses_detector(recipe: Recipe) -> bool:
    """Whether masks or filters ask the detector."""
    return recipe.masks.source == "detector" or recipe.filters.min_detector_iou is not None


def generate(
    recipe: Recipe,
    store: Store,
    extend: bool = False,
    watch: Watch = lambda snapshot: None,
    force: bool = False,
    held: Held | None = None,
) -> Summary:
    """Begin or resume a dataset, and run until it is done. `watch` sees a snapshot at least every half second.

    One driver at a time: LeaseHeldError names another one that is at work, unless `force` takes over from it; `held` is
    a lease that the caller has already. KeyboardInterrupt passes through, after the shards under way had `engine.grace`
    seconds: what is committed is kept, and the same call continues.
    """
    begun = recipe_begun(store)
    recipe = pinned(recipe, begun)
    preflight(recipe)
    with nullcontext(held) if held else leased(store, force, _log.warning) as lease:
        recipe = begin(store, recipe, extend)
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
    return Summary(totals, last, state.seconds, recipe)


def _run(recipe: Recipe, store: Store, todo: list[int], tracker: Tracker, watch: Watch, lease: Held) -> State:
    engine, threads = recipe.engine, recipe.generator.threads
    given_up = quarantined(store)
    job = ContentJob(recipe, store)
    detectors = engine.detectors if uses_detector(recipe) else 0
    with connected(engine, threads), ClusterView(Capacity(engine, threads, job.memory())) as view:
        pool = Pool(job, view.share, detectors, engine.gpus_per_detector)
        reporter = Reporter(store, tracker, watch, lease, given_up)
        scheduler = Scheduler(pool, todo, view, engine, reporter.as_listener())
        status = "failed"
        try:
            state = scheduler.run()
            status = "finishing"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            pool.close()
            reporter.close(tracker.snapshot(scheduler.state, status))
    return state
