"""Limits of the readers of shards, and files that no version of factory writes."""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from factory.config.plan import Plan
from factory.config.vocabulary import coco
from factory.dataset import manifest
from factory.dataset.preview import preview_image
from factory.dataset.reader import open_dataset
from factory.dataset.receipts import blob_of
from factory.dataset.shards import annotation_of
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import recipe_of
from factory.dataset.tar import pack, unpack
from factory.errors import UserError
from factory.files import decode
from factory.files.decode import decode_array, decode_jpeg, decode_json
from factory.segmenter.data import DatasetSource
from tests.support.export_datasets import make_dataset, run

TAR, RECEIPT = "train/000000.tar", "receipts/000000.json"
KEY = "000000000"


@pytest.fixture
def foreign(tmp_path: Path) -> Store:
    return make_dataset(tmp_path / "set", shards=range(1), n=5)[0]


def packed(names: Sequence[str]) -> bytes:
    """A tar of empty files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


def test_limits_of_images_json_and_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (20, 10)).save(stream, "JPEG")
    monkeypatch.setattr(decode, "MAX_PIXELS", 199)
    with pytest.raises(ValueError, match="the image is 20 x 10; the limit is 199 pixels"):
        decode_jpeg(stream.getvalue())
    monkeypatch.setattr(decode, "MAX_MEMBER_BYTES", 99)
    with pytest.raises(ValueError, match=r"the image has .* bytes; the limit is 99"):
        decode_jpeg(stream.getvalue())
    monkeypatch.setattr(decode, "MAX_JSON_BYTES", 4)
    with pytest.raises(ValueError, match="the JSON has 5 bytes; the limit is 4"):
        decode_json(b"[1,2]")
    with pytest.raises(ValueError, match="its format version is not 1"):
        decode_array(b"\x93NUMPY\x02\x00" + bytes(20))


@pytest.mark.parametrize(
    ("tar", "message"),
    [
        (packed([f"{KEY}.a", f"{KEY}.a"]), f"{KEY}.a is duplicated"),
        (packed([f"{KEY}.a"])[:40] + b"x" + packed([f"{KEY}.a"])[41:], "the checksum of a header is wrong"),
    ],
)
def test_tar_that_no_writer_makes_is_rejected(tar: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(unpack(tar))


def test_tar_with_a_long_name_in_two_parts_is_rejected() -> None:
    """Its samples would be read under the second part of their names."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo(f"{'x' * 100}/{KEY}.jpg"))
    with pytest.raises(ValueError, match="is not a regular file; a shard may not contain anything else"):
        list(unpack(stream.getvalue()))


def test_tar_with_half_an_end_marker_is_truncated() -> None:
    tar = packed([f"{KEY}.a"])[:512]
    assert [sample.key for sample in unpack(tar + bytes(1024))] == [KEY]
    with pytest.raises(ValueError, match="its end marker is missing"):
        list(unpack(tar + bytes(512)))


def test_limits_of_samples_and_objects(foreign: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = list(unpack(foreign.get(TAR) or b""))
    monkeypatch.setattr("factory.dataset.tar.MAX_SAMPLES", 4)
    with pytest.raises(ValueError, match="more than 4 samples"):
        list(unpack(foreign.get(TAR) or b""))
    monkeypatch.setattr("factory.dataset.shards.MAX_OBJECTS", 1)
    pair = next(sample for sample in samples if len(json.loads(sample.members["json"])["annotations"]) == 2)
    with pytest.raises(ValueError, match="a list of at most 1 objects"):
        annotation_of(pair)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("id", [-1, 2**62 + 1, "1", True]),
        ("image_id", [1, None]),
        ("category_id", [0, 255, 18.0]),
        ("bbox", [[0, 0, 1], [0, 0, 1, 64 * 48 + 1], [0, 0, 1, -1]]),
        ("area", [0, 64 * 48 + 1, 7.5]),
        ("iscrowd", [1, False]),
        ("score", [-0.1, 1.1, True, "1"]),
        ("segmentation", [{"size": [64, 48], "counts": "0"}, {"size": [48, 64], "counts": [3072]}]),
    ],
)
def test_object_with_an_invalid_field_is_rejected(foreign: Store, field: str, values: list[object]) -> None:
    """The value 255 of a label image means ignore, and 0 background; generated images have no crowds."""
    sample = next(unpack(foreign.get(TAR) or b""))
    record = json.loads(sample.members["json"])
    for value in values:
        record["annotations"][0][field] = value
        sample.members["json"] = json.dumps(record).encode()
        with pytest.raises(ValueError, match=f"{field} of its object 1 does not match"):
            annotation_of(sample)


def test_foreign_manifest_is_rejected(monkeypatch: pytest.MonkeyPatch, foreign: Store) -> None:
    stream = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}), stream)
    with pytest.raises(ValueError, match="the columns of the manifest do not match the schema"):
        manifest.read_manifest(stream.getvalue())
    monkeypatch.setattr(manifest, "MAX_SAMPLES", 4)
    with pytest.raises(ValueError, match=r"has 5 rows and [0-9]+ bytes, which exceeds the limits of a shard"):
        manifest.read_manifest(foreign.get("manifest/000000.parquet") or b"")


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_manifests_are_read_without_threads(foreign: Store, tmp_path: Path) -> None:
    """`factory verify` of a sound dataset once ended with SIGABRT, because a thread of pyarrow outlived Python."""
    (tmp_path / "manifest.parquet").write_bytes(foreign.get("manifest/000000.parquet") or b"")
    program = """
import os, sys
from pathlib import Path
from factory.dataset.manifest import read_manifest
before = len(os.listdir("/proc/self/task"))
rows = read_manifest(Path(sys.argv[1]).read_bytes())
print(len(rows), len(os.listdir("/proc/self/task")) - before)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "manifest.parquet")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "5 0\n"


def test_annotation_that_does_not_fit_the_manifest_is_rejected(foreign: Store) -> None:
    first = next(unpack(foreign.get(TAR) or b""))
    parsed = json.loads(first.members["json"])
    for change, message in (
        ({"filters": {"beauty": 1.0}}, "the manifest has no column for beauty"),
        ({"seed": "x"}, "the annotations do not fit the manifest schema"),
    ):
        first.members["json"] = json.dumps(parsed | change).encode()
        with pytest.raises(ValueError, match=message):
            manifest.manifest_of([first], 0, 2)


def test_image_of_another_size_than_its_annotation_is_reported_by_every_reader(foreign: Store, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32)).save(stream, "JPEG")
    samples = list(unpack(foreign.get(TAR) or b""))
    for sample in samples:
        sample.members["jpg"] = stream.getvalue()
    folder, tar = tmp_path / "set", pack(samples)
    receipt = json.loads((folder / RECEIPT).read_text())
    (folder / TAR).write_bytes(tar)
    (folder / RECEIPT).write_text(json.dumps(receipt | {"tar": vars(blob_of(TAR, tar))}))
    for read in (
        lambda: list(open_dataset(foreign.address)),
        lambda: preview_image(foreign, 1),
        lambda: run(foreign, tmp_path / "coco", "coco"),
        lambda: DatasetSource(foreign, coco()).samples(0)[0].decode(),
    ):
        with pytest.raises(UserError, match="repair the dataset with `factory verify"):
            read()


def test_missing_shard_is_reported(foreign: Store) -> None:
    foreign.delete(TAR)
    with pytest.raises(UserError, match=r"train/000000\.tar of .* is missing; repair the dataset with"):
        list(open_dataset(foreign.address))


def test_a_sample_has_the_prompt_of_its_plan(foreign: Store) -> None:
    prompts = [sample.prompt for sample in open_dataset(foreign.address)]
    assert prompts == [sample.prompt.text for sample in Plan(recipe_of(foreign)).shard(0).samples]
    with pytest.raises(IndexError, match="shard 1 of 1"):
        Plan(recipe_of(foreign)).shard(1)
