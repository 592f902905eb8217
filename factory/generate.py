"""Make a set: recipe, plan, what is missing of it, the engine, and the statement at the end."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from factory import exit_codes
from factory.dataset import Totals, begin, put_progress, write_statement
from factory.engine.cluster import connected, gpus_per_worker
from factory.engine.content import ContentJob
from factory.engine.pool import Pool
from factory.engine.scheduler import Listener, Scheduler, State
from factory.errors import UserError
from factory.generator.load import EMBEDDED, model_folder, pin_revision
from factory.grounder.folder import check_fits, grounder_folder, pin_grounder, read_config
from factory.plan import Plan, shard_name
from factory.produce.components import SOURCES, check_source
from factory.progress import Snapshot, Tracker
from factory.receipts import committed, missing
from factory.recipe import Recipe
from factory.recipe_parts import GeneratorRecipe, MaskRecipe
from factory.store import Store
from factory.vocabulary import coco

_PROGRESS_EVERY = 3.0

Watch = Callable[[Snapshot], None]


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


def pinned(recipe: Recipe) -> Recipe:
    """The recipe with the revisions of its models, and with all that a worker would find wrong told before."""
    if recipe.real is None:
        check_source(recipe.masks.source)
    _check_embedded_classes(recipe)
    generator, masks = recipe.generator, recipe.masks
    folder = model_folder(generator.model)
    if folder is not None and generator.model != EMBEDDED:
        generator = generator.model_copy(update={"model": str(folder.absolute())})
    if generator.revision is None:
        generator = generator.model_copy(update={"revision": pin_revision(generator.model)})
    if masks.detector_revision is None and uses_detector(recipe):
        from factory.detector.load import check_classes, detector_folder, pin_detector

        check_classes(recipe)
        named = masks.detector
        if not named.startswith(("torchvision:", "detectron2:", EMBEDDED)) and (there := detector_folder(named)):
            named = str(there.absolute())
        masks = masks.model_copy(update={"detector": named, "detector_revision": pin_detector(named)})
    if masks.source not in (*SOURCES, "labels"):
        masks = _pinned_grounder(masks, generator)
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


def generate(recipe: Recipe, store: Store, extend: bool = False, watch: Watch = lambda snapshot: None) -> Summary:
    """Begin or resume a set, and run until it is done. `watch` sees a snapshot at least every half second.

    KeyboardInterrupt passes through: what is committed stays, and the same call goes on from there.
    """
    recipe = begin(store, pinned(recipe), extend)
    plan = Plan(recipe)
    done = {number for number in committed(store) if number < len(plan)}
    tracker, state = Tracker(plan, done), State(len(plan))
    todo = missing(plan, done)
    if todo:
        state = _run(recipe, store, todo, tracker, watch)
    totals = write_statement(store, recipe)
    status = "done" if totals.shards == len(plan) else "incomplete"
    last = tracker.snapshot(state, status)
    put_progress(store, last.to_dict())
    watch(last)
    return Summary(totals, last, state.seconds, recipe)


def _run(recipe: Recipe, store: Store, todo: list[int], tracker: Tracker, watch: Watch) -> State:
    engine, threads = recipe.engine, recipe.generator.threads
    listener = _Reporter(store, tracker, watch)
    with connected(engine, threads):
        gpus = gpus_per_worker(engine)
        detectors = engine.detectors if uses_detector(recipe) else 0
        pool = Pool(ContentJob(recipe, store), threads, gpus, detectors, engine.gpus_per_detector)
        share = (float(threads), gpus)
        scheduler = Scheduler(pool, todo, engine.workers, share, engine.deadline, listener.as_listener())
        status = "failed"
        try:
            state = scheduler.run()
            status = "finishing"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            pool.close()
            listener.tell(scheduler.state, status)
    return state


class _Reporter:
    """Listens to the scheduler for the view, progress.json and the quarantine."""

    def __init__(self, store: Store, tracker: Tracker, watch: Watch) -> None:
        self._store, self._tracker, self._watch = store, tracker, watch
        self._written = 0.0

    def as_listener(self) -> Listener:
        return Listener(tick=self.tick, quarantine=self.quarantine, finished=self.finished)

    def tick(self, state: State) -> None:
        snapshot = self._tracker.snapshot(state)
        self._watch(snapshot)
        if time.monotonic() - self._written > _PROGRESS_EVERY:
            self._written = time.monotonic()
            put_progress(self._store, snapshot.to_dict())

    def tell(self, state: State, status: str) -> None:
        """The last word of a run; a full disk does not hide why it ended."""
        try:
            put_progress(self._store, self._tracker.snapshot(state, status).to_dict())
        except ValueError:
            if status == "finishing":
                raise

    def quarantine(self, shard: int, text: str) -> None:
        name = _quarantine_name(shard)
        data = json.dumps({"shard": shard, "error": text}, indent=1).encode()
        self._store.swap(name, data, self._store.get(name))

    def finished(self, shard: int) -> None:
        """A shard that was given up in an earlier run is done now."""
        if self._store.get(_quarantine_name(shard)) is not None:
            self._store.delete(_quarantine_name(shard))


def _quarantine_name(shard: int) -> str:
    return f"quarantine/{shard_name(shard)}.json"
