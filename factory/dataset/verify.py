"""Verifies a dataset: digests, formats and everything that readers rely on."""

from collections.abc import Callable
from dataclasses import dataclass, field

from factory.config.plan import Plan
from factory.dataset.check_shard import ShardCheck, check_shard
from factory.dataset.duplicates import Images
from factory.dataset.ordered_map import ordered_map
from factory.dataset.receipts import (
    check_same_recipe,
    finished_shards,
    manifest_name,
    missing_shards,
    receipt_name,
    tar_name,
)
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import recipe_of

_THREADS = 4


@dataclass
class Report:
    """The result of verifying a dataset.

    `shards` and `samples` count what has a receipt and was checked; `planned` is the number of shards of the recipe.
    `damaged` maps shard numbers to problems; shards in `only_manifest` can be repaired from their tar files. `orphans`
    maps files of planned shards without a receipt to the shard; `foreign` lists files that do not belong to the
    dataset. `unreadable` are damaged shards with a file for which the disk returned an error.
    """

    planned: int = 0
    shards: int = 0
    samples: int = 0
    missing: list[int] = field(default_factory=list)
    damaged: dict[int, list[str]] = field(default_factory=dict)
    only_manifest: list[int] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    orphans: dict[str, int] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether no finished shard is damaged; an unfinished dataset can be sound."""
        return not self.damaged


def verify(store: Store, choose: Callable[[list[int]], list[int]] = lambda numbers: numbers) -> Report:
    """Check the shards that have a receipt, or those that `choose` selects from their numbers.

    Raises UserError if there is no dataset, or if recipe.yaml was changed since its shards were generated: a repair
    would delete all of them. A single shard of another recipe is damage.
    """
    recipe = recipe_of(store)
    plan = Plan(recipe)
    finished = finished_shards(store, plan)
    if len(finished) > 1:
        check_same_recipe(store, recipe.fingerprint(), finished)
    orphans, foreign = _without_receipt(store, plan, set(finished))
    report = Report(planned=len(plan), missing=missing_shards(plan, finished), orphans=orphans, foreign=foreign)
    images = Images()

    def check(number: int) -> ShardCheck:
        return check_shard(store, recipe, plan.shard(number))

    for number, checked in ordered_map(check, choose(finished), _THREADS, ahead=4 * _THREADS, name="verify"):
        report.shards += 1
        report.samples += checked.samples
        if checked.problems:
            report.damaged[number] = list(checked.problems)
        if checked.only_manifest:
            report.only_manifest.append(number)
        if checked.unreadable:
            report.unreadable.append(number)
        # A labelled folder may contain an image twice; two seeds never generate the same one.
        images.add(number, checked.images if recipe.real is None else ())
    for number, problem in images.duplicates():
        report.damaged.setdefault(number, []).append(problem)
        report.only_manifest = [other for other in report.only_manifest if other != number]
    report.damaged = dict(sorted(report.damaged.items()))
    return report


def _without_receipt(store: Store, plan: Plan, finished: set[int]) -> tuple[dict[str, int], list[str]]:
    """(orphans: file names of planned shards without a receipt, mapped to the shard; foreign files)."""
    orphans: dict[str, int] = {}
    foreign: list[str] = []
    for folder, name_of in (("train", tar_name), ("manifest", manifest_name), ("receipts", receipt_name)):
        for name in store.list(folder):
            stem = name.removeprefix(f"{folder}/").partition(".")[0]
            number = int(stem) if stem.isascii() and stem.isdecimal() else -1
            if name != name_of(number) or number >= len(plan):
                foreign.append(name)
            elif number not in finished and folder != "receipts":  # a run can write a receipt after `finished` was read
                orphans[name] = number
    return orphans, foreign
