"""Untrusted datasets with hostile tars, records and images are rejected, and nothing is written outside."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from factory.config.vocabulary import coco
from factory.dataset.masks import decode_label_png, decode_rle
from factory.dataset.preview import preview_image
from factory.dataset.receipts import blob_of, parse_receipt, read_receipt
from factory.dataset.storage import Store
from factory.dataset.tar import unpack
from factory.dataset.verify import verify
from factory.errors import UserError
from factory.files.decode import decode_array, decode_jpeg, decode_json
from factory.segmenter.data import DatasetSource
from tests.support.export_datasets import FORMATS, make_dataset, run
from tests.support.in_process import invoke

TAR, RECEIPT = "train/000000.tar", "receipts/000000.json"
KEY = "000000000"
DAMAGED = r"train/000000\.tar of .* is damaged: .*; repair the dataset with `factory verify .* --repair`"


def members_of(store: Store) -> list[tuple[str, bytes]]:
    return [(f"{s.key}.{suffix}", data) for s in unpack(store.get(TAR) or b"") for suffix, data in s.members.items()]


def packed(members: list[tuple[str, bytes]], **fields: Any) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            for field, value in fields.items():
                setattr(entry, field, value)
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def plant(store: Store, tar: bytes) -> None:
    """Put a tar with a matching receipt into a dataset, as an attacker could."""
    assert store.folder is not None
    receipt = json.loads((store.folder / RECEIPT).read_text())
    blob = blob_of(TAR, tar)
    (store.folder / TAR).write_bytes(tar)
    (store.folder / RECEIPT).write_text(json.dumps(receipt | {"tar": vars(blob)}))


def changed(store: Store, suffix: str, change: Callable[[bytes], bytes]) -> bytes:
    return packed([(name, change(data) if name.endswith(suffix) else data) for name, data in members_of(store)])


def record(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps(json.loads(data) | changes).encode()


def in_image(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps((parsed := json.loads(data)) | {"image": parsed["image"] | changes}).encode()


def in_objects(**changes: Any) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        parsed = json.loads(data)
        return json.dumps(parsed | {"annotations": [item | changes for item in parsed["annotations"]]}).encode()

    return change


def png_of(width: int, height: int) -> bytes:
    """A PNG that declares a size but has no pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)), (b"PLTE", bytes(768)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def renamed(name: str) -> Callable[[Store], bytes]:
    """The first sample's members under another key."""
    return lambda store: packed([(member.replace(KEY, name), data) for member, data in members_of(store)])


HOSTILE: dict[str, Callable[[Store], bytes]] = {
    "a key with a parent path": renamed("../../escaped"),
    "an absolute key": renamed("/tmp/escaped"),
    "a key with other characters": renamed("<script>"),
    "a key with Arabic digits": renamed("\u0660" * 9),
    "a key that is too long": renamed("0" * 90),
    "a suffix with a folder": lambda store: packed([(f"{KEY}.jpg/../../x", b"x")]),
    "not a tar": lambda store: b"what is this" * 1000,
    "an empty file": lambda store: b"",
    "truncated within a member": lambda store: (store.get(TAR) or b"")[:3000],
    "truncated before its end": lambda store: (store.get(TAR) or b"").rstrip(b"\0") + bytes(100),
    "a symbolic link": lambda store: packed([(f"{KEY}.jpg", b"")], type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": lambda store: packed([(f"{KEY}.jpg", b"")], type=tarfile.LNKTYPE, linkname="other"),
    "a sparse file": lambda store: packed([(f"{KEY}.jpg", bytes(512))], type=tarfile.GNUTYPE_SPARSE),
    "a negative size": lambda store: with_size(packed([(f"{KEY}.jpg", b"x")]), b"-0000000777\0"),
    "a size beyond the file": lambda store: with_size(packed([(f"{KEY}.jpg", b"x")]), b"77777777777\0"),
    "too many members": lambda store: packed([(f"{KEY}.m{k}", b"") for k in range(17)]),
    "a sample without its image": lambda store: packed([m for m in members_of(store) if not m[0].endswith("jpg")]),
    "a duplicated sample": lambda store: packed(members_of(store) * 2),
    "a record of another sample": lambda store: changed(store, "json", record(key="../../x")),
    "a file name with a parent path": lambda store: changed(store, "json", in_image(file_name="../../x.jpg")),
    "a record that is a list": lambda store: changed(store, "json", lambda data: b"[]"),
    "a truncated record": lambda store: changed(store, "json", lambda data: data[:-9]),
    "a deeply nested record": lambda store: changed(store, "json", lambda data: b"[" * 100_000),
    "an image larger than memory": lambda store: changed(store, "json", in_image(width=10**9, height=10**9)),
    "a size that is not a number": lambda store: changed(store, "json", in_image(width="64")),
    "an unknown class": lambda store: changed(store, "json", in_objects(category_id=90)),
    "a record with a prompt that is not Unicode": lambda store: changed(store, "json", record(prompt="\ud800")),
    "a record with a class that is not Unicode": lambda store: changed(store, "json", record(classes=["\ud800"])),
    "a record of an object that is not Unicode": lambda s: changed(s, "json", in_objects(category_name="\udfff")),
    "ids of objects of another image": lambda store: changed(store, "json", in_objects(id=7)),
    "another box": lambda store: changed(store, "json", in_objects(bbox=[0, 0, 1, 1])),
    "a box of text": lambda store: changed(store, "json", in_objects(bbox=["a", 1, 1, 1])),
    "a score of infinity": lambda store: changed(store, "json", lambda d: d.replace(b'"score":0.5', b'"score":1e999')),
    "run lengths of another size": lambda store: changed(
        store, "json", in_objects(segmentation={"size": [10**6, 10**6], "counts": "0"})
    ),
    "run lengths beyond the image": lambda store: changed(
        store, "json", in_objects(segmentation={"size": [48, 64], "counts": "o" * 999 + "0"})
    ),
    "labels that are not an image": lambda store: changed(store, "seg.png", lambda data: b"GIF89a"),
    "labels with too many pixels": lambda store: changed(store, "seg.png", lambda data: png_of(60_000, 60_000)),
    "truncated labels": lambda store: changed(store, "seg.png", lambda data: data[:-30]),
    "an image that is a PNG": lambda store: changed(store, "jpg", lambda data: png_of(64, 48)),
    "an image with too many pixels": lambda store: changed(store, "jpg", enlarged),
}


def with_size(tar: bytes, size: bytes) -> bytes:
    header = tar[:124] + size + tar[136:148] + b" " * 8 + tar[156:512]
    return header[:148] + f"{sum(header):06o}\0 ".encode() + header[156:] + tar[512:]


def enlarged(jpeg: bytes) -> bytes:
    """A JPEG whose frame header declares 65,000 x 65,000 pixels."""
    offset = jpeg.index(b"\xff\xc0")
    return jpeg[: offset + 5] + struct.pack(">HH", 65_000, 65_000) + jpeg[offset + 9 :]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store, _ = make_dataset(tmp_path_factory.mktemp("hostile") / "set", shards=range(1), n=5)
    assert store.folder is not None
    return {path.relative_to(store.folder).as_posix(): path.read_bytes() for path in store.folder.rglob("*.*")
            if path.is_file()}  # fmt: skip


@pytest.fixture
def foreign(whole: Mapping[str, bytes], tmp_path: Path) -> Store:
    for name, data in whole.items():
        (tmp_path / "in" / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "set" / name).write_bytes(data)
    return Store(str(tmp_path / "in" / "set"))


def everything_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", HOSTILE)
def test_verify_and_exports_reject_hostile_shards(foreign: Store, tmp_path: Path, kind: str) -> None:
    plant(foreign, HOSTILE[kind](foreign))
    before = everything_in(tmp_path)
    assert list(verify(foreign).damaged) == [0]
    for form in FORMATS:
        with pytest.raises(UserError, match=DAMAGED):
            run(foreign, tmp_path / "in" / form, form)
    exports = [tmp_path / "in" / form for form in FORMATS]
    assert [path for path in everything_in(tmp_path) - before if not any(map(path.is_relative_to, exports))] == []
    assert [path for path in everything_in(tmp_path) if "escaped" in path.name or path.stem == "x"] == []


READ_BY_TRAINING = [kind for kind in HOSTILE if not any(word in kind for word in ("record", "box", "score", "run le",
                     "class", "size that", "file name", "larger than memory", "suffix", "ids of"))]  # fmt: skip


@pytest.mark.parametrize("kind", READ_BY_TRAINING)
def test_training_rejects_hostile_shards(foreign: Store, kind: str) -> None:
    plant(foreign, HOSTILE[kind](foreign))
    source = DatasetSource(foreign, coco())
    with pytest.raises(UserError, match=DAMAGED):
        [row.decode() for row in source.samples(0)]


CHECKED_BY_EXPORTS = ("an unknown class", "ids of objects of another image", "another box")
READ_BY_PREVIEWS = [kind for kind in HOSTILE if "labels" not in kind and kind not in CHECKED_BY_EXPORTS]


@pytest.mark.parametrize("kind", READ_BY_PREVIEWS)
def test_preview_rejects_hostile_shards(foreign: Store, kind: str) -> None:
    plant(foreign, HOSTILE[kind](foreign))
    with pytest.raises(UserError, match=DAMAGED):
        preview_image(foreign, 24)


def test_sheet_command_reports_a_truncated_tar(foreign: Store, tmp_path: Path) -> None:
    plant(foreign, (foreign.get(TAR) or b"")[:3000])
    result = invoke("sheet", foreign.address, "--out", tmp_path / "sheet.png")
    assert isinstance(result.exception, UserError)
    assert "the tar is truncated within 000000000.jpg; repair the dataset with `factory verify" in str(result.exception)
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"tar": {"name": "../../secret", "sha256": "0" * 64, "bytes": 1}},
        {"tar": {"name": "train/000001.tar", "sha256": "0" * 64, "bytes": 1}},
        {"manifest": {"name": "/etc/passwd", "sha256": "0" * 64, "bytes": 1}},
        {"shard": 1},
        {"accepted": "5"},
        {"accepted": -1},
        {"short": [None]},
        {"rejected": []},
        {"plan": "0"},
        {"recipe": 7},
    ],
)
def test_invalid_receipt_is_rejected(foreign: Store, whole: Mapping[str, bytes], change: dict[str, Any]) -> None:
    assert foreign.folder is not None
    (foreign.folder / RECEIPT).write_text(json.dumps(json.loads(whole[RECEIPT]) | change))
    with pytest.raises(ValueError, match=r"not a .*receipt"):
        read_receipt(foreign, 0)
    with pytest.raises(UserError, match="the receipt of shard 0 is corrupt"):
        run(foreign, foreign.folder.parent / "coco", "coco")


def test_receipt_round_trip(whole: Mapping[str, bytes]) -> None:
    assert parse_receipt(whole[RECEIPT]).to_json() == whole[RECEIPT]


def test_tar_written_by_tarfile_is_readable(foreign: Store) -> None:
    assert [(f"{s.key}.{x}", d) for s in unpack(packed(members_of(foreign))) for x, d in s.members.items()] == (
        members_of(foreign)
    )


def arrays() -> Iterator[bytes]:
    for array in (np.zeros(3, np.float16), np.zeros((2, 2, 2), np.float32), np.array([[[None]]], object)):
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=True)
        yield stream.getvalue()
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f2", "fortran_order": False, "shape": (2**20,) * 3})
    yield stream.getvalue()
    yield b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 70_000
    yield b""


@pytest.mark.parametrize("number", range(6))
def test_hostile_array_is_rejected_before_allocation(number: int) -> None:
    with pytest.raises(ValueError, match="array"):
        decode_array(list(arrays())[number])


@pytest.mark.parametrize("header", ["(((", "-" * 9000 + "1", "{'descr': " + "(" * 3000, "'''"])
def test_array_with_a_header_that_is_no_literal_is_rejected(header: str) -> None:
    with pytest.raises(ValueError, match="not a readable array: "):
        decode_array(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())


@pytest.mark.parametrize("text", [b"[" * 10**6, b'{"a":' * 10**5, b"NaN", b"[Infinity]", b"1" * 10**5, b"\xff", b"",
                                  b"1e999", b"-1e999", b"1" * 400])  # fmt: skip
def test_hostile_json_raises_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        decode_json(text)


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [2**40, 2**40], "counts": "0"},
        {"size": [-4, -4], "counts": "0"},
        {"size": None, "counts": "0"},
        {"size": [4], "counts": "0"},
        {"size": [float("inf"), 4], "counts": "0"},
        {"size": [4, 4], "counts": "o" * 10**6 + "0"},
        {"size": [4, 4], "counts": "\x00 é"},
        {"size": [4, 4], "counts": "oooo7oooo7"},
    ],
)
def test_hostile_run_lengths_raise_value_error(rle: Any) -> None:
    with pytest.raises(ValueError, match=r"mask|run lengths"):
        decode_rle(rle)


def test_image_of_another_format_is_rejected() -> None:
    stream = io.BytesIO()
    Image.new("P", (4, 4)).save(stream, "GIF")
    with pytest.raises(ValueError, match="not a readable PNG"):
        decode_label_png(stream.getvalue())
    with pytest.raises(ValueError, match="not a readable JPEG"):
        decode_jpeg(stream.getvalue())
