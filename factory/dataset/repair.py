"""Repairs a dataset: rewrites manifests from intact tar files, and deletes what a run must generate again."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from factory.config.plan import Plan
from factory.dataset.check_shard import check_shard
from factory.dataset.manifest import manifest_of
from factory.dataset.receipts import blob_of, manifest_name, parse_receipt, receipt_name, tar_name
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import recipe_of
from factory.dataset.tar import unpack
from factory.dataset.verify import Report


@dataclass(frozen=True)
class RepairResult:
    """Shards with a rewritten manifest, shards deleted for regeneration, and deleted orphans."""

    rewritten: tuple[int, ...]
    deleted: tuple[int, ...]
    orphans: tuple[str, ...]


def repair(store: Store, report: Report, confirm: Callable[[], None] = lambda: None) -> RepairResult:
    """Rewrite damaged manifests from their tars, and delete other damaged shards and orphans. A run regenerates them.

    The caller must have acquired the dataset's lease before the check, because the newest files of a run are orphans
    until their receipt is written. `confirm` raises an error if the lease was lost since; another driver may have
    completed what the report names. A worker of a killed driver may complete a shard as well: files that have a receipt
    now are kept, and so are shards that the disk can read again, and those of damaged manifests that changed meanwhile:
    nobody has checked that these can be generated again. The receipt of a damaged shard is deleted first, so that an
    interrupted repair leaves a missing shard and not one that looks intact.
    """
    recipe = recipe_of(store)
    plan, kept = Plan(recipe), set[int]()
    for number in report.unreadable:
        if not check_shard(store, recipe, plan.shard(number)).problems:
            kept.add(number)
    rewritten = []
    for number in report.only_manifest:
        confirm()
        if _rewrite_manifest(store, number, recipe.format):
            rewritten.append(number)
    deleted = tuple(number for number in report.damaged if number not in kept.union(report.only_manifest))
    for number in deleted:
        for name in (receipt_name(number), manifest_name(number), tar_name(number)):
            confirm()
            store.delete(name)
    orphans = []
    for name, number in report.orphans.items():
        confirm()
        if store.get(receipt_name(number)) is None:
            store.delete(name)
            orphans.append(name)
    return RepairResult(tuple(rewritten), deleted, tuple(orphans))


def _rewrite_manifest(store: Store, number: int, recipe_format: int) -> bool:
    """Rewrite a shard's manifest from its tar and update the receipt; False if files changed since the check.

    The file's bytes depend on the version of the library that writes it, so the receipt gets the new digest.
    """
    tar, receipt_bytes = store.get(tar_name(number)), store.get(receipt_name(number))
    if tar is None or receipt_bytes is None:
        return False
    receipt = parse_receipt(receipt_bytes)
    if hashlib.sha256(tar).hexdigest() != receipt.tar.sha256:
        return False
    data = manifest_of(unpack(tar), number, recipe_format)
    store.delete(manifest_name(number))
    # Not `create`: if the response to a write is lost, its repetition finds that the file exists.
    if store.create_or_get(manifest_name(number), data) != data:
        return False
    updated = replace(receipt, manifest=blob_of(manifest_name(number), data))
    return updated == receipt or store.compare_and_swap(receipt_name(number), updated.to_json(), receipt_bytes)
