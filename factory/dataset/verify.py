"""Verifies a dataset: digests, formats and everything that readers rely on."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from factory.config.plan import Plan
from factory.dataset.check_shard import check_shard
from factory.dataset.receipts import finished_shards, manifest_name, missing, tar_name
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import recipe_of


@dataclass
class Report:
    """The result of verifying a dataset.

    `shards` and `samples` count what has a receipt and was checked; `planned` is the number of shards of the recipe.
    `damaged` maps shard numbers to problems; shards in `only_manifest` can be repaired from their tar files. `orphans`
    maps files of planned shards without a receipt to the shard; `foreign` lists files that do not belong to the
    dataset.
    """

    planned: int = 0
    shards: int = 0
    samples: int = 0
    missing: list[int] = field(default_factory=list)
    damaged: dict[int, list[str]] = field(default_factory=dict)
    only_manifest: list[int] = field(default_factory=list)
    orphans: dict[str, int] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether no finished shard is damaged; an unfinished dataset can be sound."""
        return not self.damaged


def verify(store: Store, choose: Callable[[list[int]], list[int]] = lambda numbers: numbers) -> Report:
    """Check the shards that have a receipt, or those that `choose` selects from their numbers.

    Raises UserError if there is no dataset.
    """
    recipe = recipe_of(store)
    plan = Plan(recipe)
    finished = finished_shards(store, plan)
    orphans, foreign = _without_receipt(store, plan, set(finished))
    report = Report(planned=len(plan), missing=missing(plan, finished), orphans=orphans, foreign=foreign)
    seen: dict[bytes, str] = {}
    with ThreadPoolExecutor(4) as pool:
        for checked in pool.map(lambda number: check_shard(store, recipe, plan.shard(number)), choose(finished)):
            problems = list(checked.problems)
            # A labelled folder may contain an image twice; two seeds never generate the same one.
            for digest, key in checked.images if recipe.real is None else ():
                if seen.setdefault(digest, key) != key:
                    problems.append(f"{key} has the same image as {seen[digest]}")
            report.shards += 1
            report.samples += checked.samples
            if problems:
                report.damaged[checked.number] = problems
            if checked.only_manifest and problems == checked.problems:
                report.only_manifest.append(checked.number)
    return report


def _without_receipt(store: Store, plan: Plan, finished: set[int]) -> tuple[dict[str, int], list[str]]:
    """(orphans: file names of planned shards without a receipt, mapped to the shard; foreign files)."""
    orphans: dict[str, int] = {}
    foreign: list[str] = []
    for folder, name_of in (("train", tar_name), ("manifest", manifest_name)):
        for name in store.list(folder):
            stem = name.removeprefix(f"{folder}/").partition(".")[0]
            number = int(stem) if stem.isascii() and stem.isdecimal() else -1
            if name != name_of(number) or number >= len(plan):
                foreign.append(name)
            elif number not in finished:
                orphans[name] = number
    return orphans, foreign
