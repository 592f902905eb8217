"""Files that exist but that a disk cannot read, as with a bad sector: `verify` lists all of them and repairs them."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factory.dataset.receipts import manifest_name, receipt_name, tar_name
from factory.dataset.repair import repair
from factory.dataset.storage import Store
from factory.dataset.storage_errors import UnreadableError
from factory.dataset.storage_requests import Requests
from factory.dataset.totals import read_receipts
from factory.dataset.verify import verify
from tests.support.export_datasets import SHARDS, make_dataset

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
