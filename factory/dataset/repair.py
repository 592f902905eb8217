"""Repair a dataset: write what follows from sound files, and take out what a run has to make again."""

import hashlib
from dataclasses import dataclass, replace

from factory.dataset.manifest import manifest_of
from factory.dataset.receipts import blob_of, manifest_name, parse_receipt, receipt_name, tar_name
from factory.dataset.state import recipe_of
from factory.dataset.storage import Store
from factory.dataset.tar import unpack
from factory.dataset.verify import Report


@dataclass(frozen=True)
class RepairResult:
    """What a repair did: shards whose manifest it wrote, shards that it took out, and orphans that it deleted."""

    rewritten: tuple[int, ...]
    again: tuple[int, ...]
    orphans: tuple[str, ...]


def repair(store: Store, report: Report) -> RepairResult:
    """Write damaged manifests from their tars, delete what else is damaged, and delete orphans; a run makes the rest.

    The caller holds the dataset's lease since before the check, for the newest files of a run are orphans until their
    receipt is written. The receipt of a damaged shard is deleted first, so that a repair that is cut off leaves a shard
    to be made and not one that looks sound.
    """
    layout = recipe_of(store).format
    rewritten = tuple(number for number in report.only_manifest if _rewrite_manifest(store, number, layout))
    again = tuple(number for number in report.damaged if number not in rewritten)
    for number in again:
        for name in (receipt_name(number), manifest_name(number), tar_name(number)):
            store.delete(name)
    for name in report.orphans:
        store.delete(name)
    return RepairResult(rewritten, again, tuple(report.orphans))


def _rewrite_manifest(store: Store, number: int, layout: int) -> bool:
    """Make a shard's manifest from its tar, and name it in the receipt; False where that became impossible since.

    The file's bytes depend on the version of the library that writes it, so the receipt takes the new digest.
    """
    tar, proof = store.get(tar_name(number)), store.get(receipt_name(number))
    if tar is None or proof is None:
        return False
    receipt = parse_receipt(proof)
    if hashlib.sha256(tar).hexdigest() != receipt.tar.sha256:
        return False
    data = manifest_of(unpack(tar), number, layout)
    store.delete(manifest_name(number))
    if not store.create(manifest_name(number), data):
        return False
    renewed = replace(receipt, manifest=blob_of(manifest_name(number), data))
    return renewed == receipt or store.compare_and_swap(receipt_name(number), renewed.to_json(), proof)
