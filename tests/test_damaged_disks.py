"""Files that exist but that a disk cannot read, as with a bad sector: `verify` lists all of them and repairs them.

Files that a run can write again are not read for it.
"""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import factory
from factory.cli.status import state
from factory.dataset.description import write_description
from factory.dataset.receipts import manifest_name, receipt_name, tar_name
from factory.dataset.repair import repair
from factory.dataset.storage import Store
from factory.dataset.storage_errors import UnreadableError
from factory.dataset.storage_requests import Requests
from factory.dataset.totals import read_receipts
from factory.dataset.verify import verify
from factory.report.audit import rejected_images
from tests.support.export_datasets import SHARD_SIZE, SHARDS, make_dataset

BAD = [tar_name(0), manifest_name(1), receipt_name(2)]
"""One file of each of the first shards."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_dataset(tmp_path)[0]


@pytest.fixture
def damage(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the files that cannot be read."""
    bad, run = set(BAD), Requests.run

    def fail(client: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def damaged(self: Requests, name: str, action: Callable[[Any], Any], *args: Any, **options: Any) -> Any:
        return run(self, name, fail if name in bad and options.get("reads") else action, *args, **options)

    monkeypatch.setattr(Requests, "run", damaged)
    return bad


def test_files_that_a_disk_cannot_read_are_damage(store: Store, damage: set[str]) -> None:
    report = verify(store)
    problem = "cannot be read: its disk returns an error"
    assert report.damaged == {number: [f"{name} {problem}"] for number, name in enumerate(BAD)}
    assert (report.only_manifest, report.shards) == ([1], SHARDS)
    with pytest.raises(
        UnreadableError, match=r"receipts/000002.json: .*error. Check the disk; .* `factory verify --rep"
    ):
        list(read_receipts(store, [2]))
    done = repair(store, report)
    assert (done.rewritten, done.deleted) == ((1,), (0, 2))
    damage.clear()
    after = verify(store)
    assert (after.damaged, after.missing) == ({}, [0, 2])


def test_repair_keeps_what_a_disk_could_not_read_for_a_moment(store: Store, damage: set[str]) -> None:
    report = verify(store)
    damage.clear()
    assert repair(store, report).deleted == ()
    assert verify(store).missing == []


def test_derived_files_that_a_disk_cannot_read_are_ignored_and_replaced(store: Store, damage: set[str]) -> None:
    """`verify` does not check them, so a message that advises a repair would be of no use."""
    damage.clear()
    recipe = factory.open_dataset(store.address).recipe
    write_description(store, recipe)
    for name in ("progress.json", "rejected/000000.json"):
        store.put(name, b"{}")
    for name in ("dataset.json", "README.md"):
        store.put(name, b"damaged")
    damage.update(store.list("index"), ("dataset.json", "README.md", "progress.json", "rejected/000000.json"))
    assert len(damage) == 5
    assert len(factory.open_dataset(store.address)) == state(store.address)["samples"] == SHARDS * SHARD_SIZE
    assert rejected_images(store, [0]) == {}
    write_description(store, recipe)
    damage.clear()
    assert json.loads(store.get("dataset.json") or b"")["complete"]
    assert store.get("README.md") != b"damaged"
