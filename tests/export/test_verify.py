"""Verification, and commits of shards that already have files."""

import io
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from factory.config.plan import Plan
from factory.config.vocabulary import coco
from factory.dataset.encode import encode_sample
from factory.dataset.manifest import read_manifest
from factory.dataset.masks import mask_to_xywh
from factory.dataset.preview import preview_image
from factory.dataset.receipts import (
    Tally,
    blob_of,
    committed_shards,
    manifest_name,
    read_receipt,
    receipt_name,
    receipt_tags,
    tar_name,
)
from factory.dataset.records import Grounded
from factory.dataset.repair import repair
from factory.dataset.storage import ConflictError, Store
from factory.dataset.verify import verify
from factory.segmenter.data import DatasetSource
from factory.training.stream import SampleStream
from tests.support.bucket import Bucket, Fault
from tests.support.export_datasets import (
    FORMATS,
    SHARD_SIZE,
    SHARDS,
    commit_shard,
    file_of,
    make_dataset,
    make_sample,
    run,
)


def with_other_version(manifest: bytes) -> bytes:
    """The same parquet file with another library version in its metadata."""
    written_by = pq.ParquetFile(io.BytesIO(manifest)).metadata.created_by.encode()
    changed = manifest.replace(written_by, written_by.translate(bytes.maketrans(b"0123456789", b"1234567890")))
    assert changed != manifest
    return changed


def rewrite(store: Store, shard: int, manifest: bytes) -> None:
    """Replace a manifest and update its receipt."""
    path, name = file_of(store, receipt_name(shard)), manifest_name(shard)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"manifest": asdict(blob_of(name, manifest))}))
    file_of(store, name).write_bytes(manifest)


def test_manifest_of_another_library_version_is_sound(tmp_path: Path) -> None:
    store, _ = make_dataset(tmp_path)
    for shard in range(SHARDS):
        rewrite(store, shard, with_other_version(store.get(manifest_name(shard)) or b""))
    assert verify(store).damaged == {}


def test_manifest_that_does_not_match_the_samples_is_repaired(tmp_path: Path) -> None:
    store, _ = make_dataset(tmp_path)
    before = {name: store.get(name) for name in store.list("")}
    rewrite(store, 1, store.get(manifest_name(2)) or b"")
    report = verify(store)
    assert report.damaged == {1: ["the manifest does not match the samples"]}
    assert repair(store, report).rewritten == (1,)
    assert verify(store).damaged == {}
    assert {name: store.get(name) for name in before} == before


def test_manifest_has_the_values_of_the_samples(tmp_path: Path) -> None:
    """`verify` compares it with rows made by the same code, so it would not find a wrong value."""
    store, recipe = make_dataset(tmp_path, shards=(1,))
    rows = read_manifest(store.get(manifest_name(1)) or b"")
    planned = Plan(recipe).shard(1).samples
    for row, sample, expected in zip(rows, map(make_sample, planned), planned, strict=True):
        masks, classes = [instance.mask for instance in sample.grounded.instances], list(expected.prompt.classes)
        assert (row["key"], row["index"], row["shard"], row["seed"]) == (expected.key, expected.index, 1, sample.seed)
        assert (row["width"], row["height"], row["prompt"]) == (64, 48, expected.prompt.text)
        assert row["classes"] == classes
        assert row["category_ids"] == [coco().resolve(name).id for name in classes]
        assert row["areas"] == [mask.sum() for mask in masks]
        assert row["boxes_xywh"] == [mask_to_xywh(mask) for mask in masks]
        assert row["scores"] == [instance.score for instance in sample.grounded.instances]


def test_lost_manifest_of_another_library_version_is_rewritten(tmp_path: Path) -> None:
    store, _ = make_dataset(tmp_path)
    rewrite(store, 0, with_other_version(store.get(manifest_name(0)) or b""))
    tar = store.get(tar_name(0))
    store.delete(manifest_name(0))
    assert repair(store, verify(store)).rewritten == (0,)
    assert verify(store).damaged == {}
    assert store.get(tar_name(0)) == tar


def test_lost_response_to_a_rewritten_manifest_does_not_delete_the_shard(tmp_path: Path, bucket: Bucket) -> None:
    """It is intact, and nobody has checked that it can be generated again: those of older formats cannot."""
    local, _ = make_dataset(tmp_path)
    for name in local.list(""):
        bucket.put(f"b/set/{name}", local.get(name) or b"")
    store = Store("s3://b/set")
    store.delete(manifest_name(1))
    report = verify(store)
    assert report.only_manifest == [1]
    bucket.faults.append(Fault("lost", f"PUT .*{manifest_name(1)}"))
    done = repair(store, report)
    assert (done.rewritten, done.deleted) == ((1,), ())
    assert verify(store).damaged == {}


def test_manifest_that_another_writer_replaces_meanwhile_does_not_delete_the_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of a killed driver, with another version of pyarrow. The shard may be one that cannot be generated."""
    store, _ = make_dataset(tmp_path)
    (tmp_path / manifest_name(1)).write_bytes(b"damaged")
    report, delete = verify(store), Store.delete

    def replaced(store: Store, name: str) -> None:
        delete(store, name)
        store.create(name, b"of another version")

    monkeypatch.setattr(Store, "delete", replaced)
    assert repair(store, report).deleted == ()
    assert list(verify(store).damaged) == [1]
    monkeypatch.undo()
    assert repair(store, verify(store)).rewritten == (1,)
    assert verify(store).damaged == {}


def test_commit_keeps_an_existing_manifest_of_another_version(tmp_path: Path) -> None:
    store, recipe = make_dataset(tmp_path, shards=range(1))
    commit_shard(store, recipe, 1)
    older = with_other_version(store.get(manifest_name(1)) or b"")
    store.delete(receipt_name(1))
    file_of(store, manifest_name(1)).write_bytes(older)
    commit_shard(store, recipe, 1)
    receipt = read_receipt(store, 1)
    assert receipt is not None
    assert receipt.manifest == blob_of(manifest_name(1), older)
    assert verify(store).damaged == {}


def test_a_shard_is_on_the_disk_before_its_receipt_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power failure could keep the receipt and lose the shard, which would never be generated again."""
    receipt, synchronised = tmp_path / "set" / receipt_name(0), list[tuple[int, bool]]()
    monkeypatch.setattr(os, "fsync", lambda file: synchronised.append((os.fstat(file).st_ino, receipt.exists())))
    store, _ = make_dataset(tmp_path / "set", [0])

    def done(with_receipt: bool) -> set[str]:
        numbers = {number for number, exists in synchronised if exists is with_receipt}
        names = (path for path in (tmp_path, *tmp_path.rglob("*")) if path.stat().st_ino in numbers)
        return {path.relative_to(tmp_path).as_posix() for path in names}

    shard = {"set/train/000000.tar", "set/train", "set/manifest/000000.parquet", "set/manifest"}
    assert done(with_receipt=False) == shard | {"set/recipe.yaml", "set/receipts/000000.json", "set", "."}
    assert done(with_receipt=True) == {"set/receipts", "set", "."}
    synchronised.clear()
    store.compare_and_swap("recipe.yaml", b"extended", store.get("recipe.yaml"))
    assert done(with_receipt=True) == {"set/recipe.yaml", "set"}, "the folder above has no new entry"


@pytest.mark.parametrize("name", [tar_name(1), manifest_name(1)])
@pytest.mark.parametrize("content", [b"", b"of another library"])
def test_conflicting_orphan_is_reported_and_repaired(tmp_path: Path, name: str, content: bytes) -> None:
    store, recipe = make_dataset(tmp_path, shards=(0, 2, 3, 4))
    store.create(name, content)
    with pytest.raises(ConflictError, match=r"factory verify .* --repair` deletes it"):
        commit_shard(store, recipe, 1)
    store.create(name, content)
    report = verify(store)
    assert (report.missing, report.orphans.keys() >= {name}, set(report.orphans.values())) == ([1], True, {1})
    repair(store, report)
    commit_shard(store, recipe, 1)
    report = verify(store)
    assert (report.missing, report.orphans, report.damaged, report.shards) == ([], {}, {}, SHARDS)


def test_foreign_files_are_reported_and_kept(tmp_path: Path) -> None:
    store, _ = make_dataset(tmp_path)
    names = [
        *("manifest/index.parquet", "receipts/000000.json.bak", "receipts/000099.json"),
        *("train/000099.tar", "train/1.tar", "train/notes.txt", "train/\u0661.tar"),
    ]
    for name in names:
        store.create(name, b"mine")
    report = verify(store)
    assert sorted(report.foreign) == names
    repair(store, report)
    assert all(store.get(name) == b"mine" for name in names)


def test_similar_file_names_are_not_receipts(tmp_path: Path) -> None:
    store, _ = make_dataset(tmp_path, shards=range(2))
    for name in ("receipts/2.json", "receipts/\u0660\u0660\u0660\u0660\u0660\u0662.json", "receipts/000003.txt"):
        store.create(name, b"{}")
    assert committed_shards(store) == set(receipt_tags(store, SHARDS)) == {0, 1}


@pytest.fixture(scope="module")
def first_empty(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A dataset whose first shard has no accepted samples."""
    store, recipe = make_dataset(tmp_path_factory.mktemp("empty"), shards=range(1, SHARDS))
    exhausted = tuple(sample.index for sample in Plan(recipe).shard(0).samples)
    commit_shard(store, recipe, 0, [], Tally(SHARD_SIZE, {"mask_empty": SHARD_SIZE}, exhausted))
    return store


def test_empty_shard_is_sound_and_readable(first_empty: Store, tmp_path: Path) -> None:
    assert verify(first_empty).damaged == {}
    assert read_manifest(first_empty.get(manifest_name(0)) or b"") == []
    for form in FORMATS:
        summary = run(first_empty, tmp_path / form, form)
        assert summary.train + summary.val == SHARD_SIZE * (SHARDS - 1)
    assert preview_image(first_empty, 1, ".png")
    source = DatasetSource(first_empty, coco())
    assert source.size == SHARD_SIZE * (SHARDS - 1)
    stream = SampleStream([source], 4, seed=0)
    assert all(len(stream.batch(step)) == 4 for step in range(12))


def test_missing_objects_are_reported_as_damage(tmp_path: Path) -> None:
    store, recipe = make_dataset(tmp_path, shards=range(1))
    originals = [make_sample(sample) for sample in Plan(recipe).shard(1).samples]
    pair = next(sample for sample in originals if len(sample.grounded.instances) == 2)
    changed = [
        replace(sample, grounded=Grounded(pair.grounded.instances[:1])) if sample is pair else sample
        for sample in originals
    ]
    samples = [encode_sample(sample, recipe.vocabulary(), {}, 90) for sample in changed]
    commit_shard(store, recipe, 1, samples)
    assert verify(store).damaged == {1: [f"{pair.planned.key}: the objects do not match the prompt"]}
