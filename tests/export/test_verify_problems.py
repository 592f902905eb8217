"""What `factory verify` says about samples, shards and receipts that disagree, and shards that change meanwhile."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from factory.config.plan import Plan
from factory.dataset.check_shard import check_shard
from factory.dataset.encode import encode_sample
from factory.dataset.preview import preview_image
from factory.dataset.receipts import blob_of, manifest_name, receipt_name, tar_name
from factory.dataset.repair import repair
from factory.dataset.totals import current_totals
from factory.dataset.verify import verify
from factory.errors import LeaseHeldError, UserError
from tests.support.export_datasets import commit_shard, content, encoded_samples, make_dataset, make_sample


def replace_manifest(folder: Path, shard: int, manifest: bytes) -> None:
    """Replace a manifest and update its receipt."""
    path, name = folder / receipt_name(shard), manifest_name(shard)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"manifest": asdict(blob_of(name, manifest))}))
    (folder / name).write_bytes(manifest)


def test_disagreements_of_a_shard_with_its_plan_and_receipt_are_named(tmp_path: Path) -> None:
    store, recipe = make_dataset(tmp_path, shards=range(1, 3))
    commit_shard(store, recipe, 0, encoded_samples(recipe, 0)[1:])
    replace_manifest(tmp_path, 1, b"not a manifest")
    receipt = json.loads((tmp_path / receipt_name(2)).read_text())
    (tmp_path / receipt_name(2)).write_text(json.dumps(receipt | {"accepted": 4}))
    damaged = verify(store).damaged
    assert damaged[0] == ["missing samples: 000000000; extra: none"]
    assert damaged[1][0].startswith("manifest/000001.parquet: not a readable manifest: ")
    assert damaged[2] == ["the receipt counts 4 of 5 samples, but the tar contains 5"]
    assert check_shard(store, recipe, Plan(recipe).shard(3)).problems == ["the receipt is missing"]
    (tmp_path / receipt_name(1)).rename(tmp_path / receipt_name(3))
    assert verify(store).damaged[3] == ["not a receipt of shard 3, but of shard 1"]
    with pytest.raises(UserError, match=r"receipt of shard 3 is corrupt \(not a receipt of shard 3, but of shard 1\)"):
        current_totals(store, Plan(recipe))


@pytest.mark.parametrize(
    ("damage", "problems"),
    [
        (lambda tar: tar + b"#!/bin/sh", ["the tar contains data after its end marker"]),
        (lambda tar: tar + bytes(512), []),
        (lambda tar: tar[:3000], ["the tar is truncated within 000000000.jpg"]),
    ],
)
def test_only_a_shorter_shard_is_called_truncated(damage: Any, problems: list[str], tmp_path: Path) -> None:
    store, recipe = make_dataset(tmp_path, shards=range(1))
    path = tmp_path / tar_name(0)
    path.write_bytes(damage(path.read_bytes()))
    digest, *others = check_shard(store, recipe, Plan(recipe).shard(0)).problems
    assert "does not match the digest in the receipt" in digest
    assert others == problems


def test_an_image_that_occurs_twice_is_reported(tmp_path: Path) -> None:
    store, recipe = make_dataset(tmp_path, shards=range(1))
    originals = [make_sample(sample) for sample in Plan(recipe).shard(1).samples]
    image = make_sample(Plan(recipe).shard(0).samples[2]).image
    samples = [encode_sample(replace(s, image=image) if k == 1 else s, recipe.vocabulary(), {}, 90)
               for k, s in enumerate(originals)]  # fmt: skip
    commit_shard(store, recipe, 1, samples)
    assert verify(store).damaged == {1: ["000000006 has the same image as 000000002"]}
    replace_manifest(tmp_path, 1, store.get(manifest_name(0)) or b"")
    assert repair(store, verify(store)).deleted == (1,), "a new manifest would not be enough"


def replace_image(folder: Path) -> None:
    (folder / tar_name(1)).write_bytes(b"damaged")


def replace_rows(folder: Path) -> None:
    replace_manifest(folder, 1, (folder / manifest_name(0)).read_bytes())


def delete_receipt(folder: Path) -> None:
    (folder / receipt_name(1)).unlink()


@pytest.mark.parametrize("damage", [replace_image, replace_rows, delete_receipt])
def test_repair_changes_nothing_after_its_lease_was_lost(damage: Callable[[Path], None], tmp_path: Path) -> None:
    """The driver that took over may have generated the shard again since the check."""
    store, recipe = make_dataset(tmp_path, shards=range(2))
    damage(tmp_path)
    report, before = verify(store), content(tmp_path)

    def lost() -> None:
        raise LeaseHeldError("another driver took over")

    with pytest.raises(LeaseHeldError):
        repair(store, report, lost)
    assert content(tmp_path) == before
    repair(store, report)
    commit_shard(store, recipe, 1)
    assert verify(store).sound


@pytest.mark.parametrize("tar", [None, b"other"])
def test_shard_that_changed_after_the_check_is_left_to_the_next_repair(tar: bytes | None, tmp_path: Path) -> None:
    """Nobody has checked yet that it can be generated again."""
    store, _ = make_dataset(tmp_path, shards=range(2))
    replace_manifest(tmp_path, 1, store.get(manifest_name(0)) or b"")
    report = verify(store)
    assert report.only_manifest == [1]
    (tmp_path / tar_name(1)).unlink()
    if tar is not None:
        (tmp_path / tar_name(1)).write_bytes(tar)
    done = repair(store, report)
    assert (done.rewritten, done.deleted, list(verify(store).damaged)) == ((), (), [1])
    done = repair(store, verify(store))
    assert (done.rewritten, done.deleted, list(store.list("train"))) == ((), (1,), [tar_name(0)])


def test_preview_without_samples_is_rejected(tmp_path: Path) -> None:
    store, _ = make_dataset(tmp_path, shards=range(0))
    with pytest.raises(UserError, match="has no samples yet"):
        preview_image(store, 1, ".png")
