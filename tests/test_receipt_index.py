"""The receipt index: a cache that avoids reading receipts and is checked by tags."""

import json
from pathlib import Path

import pytest

from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.description import write_description
from factory.dataset.reader import open_dataset
from factory.dataset.receipt_index import ReceiptIndex
from factory.dataset.receipts import receipt_name, receipt_tags
from factory.dataset.storage import Store
from factory.dataset.totals import current_totals
from factory.errors import UserError
from factory.report.run import write_report
from factory.segmenter.data import DatasetSource
from tests.support.bucket import Bucket, Fault
from tests.support.receipts import receipt

SHARDS = 1100


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return make_recipe({"n": 4 * SHARDS, "shard_size": 4})


@pytest.fixture
def bucket(bucket: Bucket, recipe: Recipe) -> Bucket:
    for number in range(SHARDS):
        bucket.put(f"b/set/{receipt_name(number)}", receipt(number, recipe=recipe.fingerprint()))
    return bucket


def indexed(store: Store) -> int:
    """The number of entries in the blocks of the index."""
    index = ReceiptIndex(store)
    index._load()
    return len(index._entries)


def test_every_receipt_is_read_once(bucket: Bucket, recipe: Recipe) -> None:
    store = Store("s3://b/set")
    sums = write_description(store, recipe)
    assert (sums.shards, sums.accepted, sums.rejected) == (SHARDS, 4 * SHARDS, {"overlap": 2 * SHARDS})
    assert SHARDS <= bucket.requests["GET"] <= SHARDS + 10, "a listing of two pages and three files to compare"
    bucket.requests.clear()
    assert current_totals(store, Plan(recipe)) == sums
    assert sum(bucket.requests.values()) <= 6


def test_dataset_is_described_and_reported_without_the_right_to_delete(bucket: Bucket) -> None:
    bucket.faults.append(Fault("status", "DELETE|POST", times=None, code=403))
    store, recipe = Store("s3://b/new"), make_recipe({"n": 4, "classes": ["dog"]})
    store.put("recipe.yaml", recipe.to_yaml().encode())
    write_description(store, recipe)
    assert "b/new/README.md" in bucket.objects
    write_report(store, "s3://b/report")
    assert "b/report/index.html" in bucket.objects


def test_resumed_run_keeps_the_entries_of_earlier_runs(bucket: Bucket, recipe: Recipe) -> None:
    store = Store("s3://b/set")
    first = ReceiptIndex(store)
    first.add(number for number in range(SHARDS) if number % 1000 != 7)
    first.save()
    for only_full in (True, False):
        second = ReceiptIndex(store)
        second.add([7, 1007])
        second.save(only_full)
        assert indexed(store) == (SHARDS - 1 if only_full else SHARDS)


def test_readers_read_the_index_and_a_single_receipt(bucket: Bucket, recipe: Recipe) -> None:
    store = Store("s3://b/set")
    store.put("recipe.yaml", recipe.to_yaml().encode())
    write_description(store, recipe)
    bucket.requests.clear()
    assert len(open_dataset("s3://b/set")) == 4 * SHARDS
    source = DatasetSource(store, recipe.vocabulary())
    assert (source.size, source.parts()) == (4 * SHARDS, SHARDS)
    assert sum(bucket.requests.values()) <= 2 * 7


def test_changed_and_deleted_receipts_are_detected(bucket: Bucket, recipe: Recipe) -> None:
    store = Store("s3://b/set")
    before = write_description(store, recipe)
    bucket.put(f"b/set/{receipt_name(3)}", receipt(3, accepted=1, recipe=recipe.fingerprint()))
    store.delete(receipt_name(1020))
    bucket.requests.clear()
    after = current_totals(store, Plan(recipe))
    assert (after.shards, after.accepted) == (before.shards - 1, before.accepted - 3 - 4)
    assert bucket.requests["GET"] <= 7


def test_corrupt_block_is_ignored(bucket: Bucket, recipe: Recipe) -> None:
    store = Store("s3://b/set")
    before = write_description(store, recipe)
    for data in (b"", b"[1]", b'{"0": 1}', b'{"0": [1]}', b"\xff"):
        store.put("index/000000.json", data)
        store.put("index/000001.json", data)
        assert indexed(store) == 0
    assert current_totals(store, Plan(recipe)) == before


@pytest.mark.parametrize(
    "block",
    [
        b"[" * 100_000,
        b'{"0": [7, 4, 4, 6, 10, 0, {}]}',
        b'{"0": ["tag", "4", 4, 6, 10, 0, {}]}',
        b'{"0": ["tag", 4, -4, 6, 10, 0, {}]}',
        b'{"0": ["tag", 4, 4, 6, 10, 0, {"overlap": "2"}]}',
        b'{"0": ["tag", 4, 4, 6, 10, 0, []]}',
        b'{"0": ["tag", 4, 4, 6, 10, 0]}',
        b'{"0": []}',
    ],
)
def test_block_of_wrong_types_is_ignored(tmp_path: Path, block: bytes) -> None:
    store = Store(str(tmp_path))
    store.put("index/000000.json", block)
    assert indexed(store) == 0


def test_failure_to_write_the_index_is_ignored(bucket: Bucket, recipe: Recipe) -> None:
    bucket.faults[:] = [Fault("status", "PUT .*index", times=None, code=403)]
    assert write_description(Store("s3://b/set"), recipe).shards == SHARDS


def test_corrupt_receipt_raises_a_clear_error(bucket: Bucket, recipe: Recipe) -> None:
    bucket.put(f"b/set/{receipt_name(7)}", b"{")
    with pytest.raises(UserError, match=r"the receipt of shard 7 is corrupt .*`factory verify s3://b/set --repair`"):
        write_description(Store("s3://b/set"), recipe)


def test_full_blocks_are_written_during_a_run(bucket: Bucket, recipe: Recipe) -> None:
    store = Store("s3://b/set")
    index = ReceiptIndex(store)
    index.add(range(1050))
    index.save(only_full=True)
    assert list(store.list("index")) == ["index/000000.json"]
    index.save()
    assert len(json.loads(store.get("index/000001.json") or b"{}")) == 50
    bucket.requests.clear()
    ReceiptIndex(store).entries(receipt_tags(store, len(Plan(recipe))))
    assert bucket.requests["GET"] <= SHARDS - 1050 + 5
