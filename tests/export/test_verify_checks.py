"""`verify` finds contradictions within a shard whose digests are right, as another program could have written it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.dataset.encode import encode_array, encode_jpeg
from factory.dataset.masks import IGNORE, decode_label_png, encode_label_png
from factory.dataset.repair import repair
from factory.dataset.storage import Store
from factory.dataset.verify import verify
from tests.export.test_hostile_datasets import KEY, RECEIPT, changed, in_objects, members_of, packed, plant, record
from tests.export.test_hub_loading import ORACLE
from tests.export.test_hub_loading import make_dataset as make_full_dataset
from tests.support.export_datasets import NAMES, SHARD_SIZE, make_dataset

Change = Callable[[Store], None]


def in_tar(suffix: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda store: plant(store, changed(store, suffix, change))


def in_receipt(**changes: Any) -> Change:
    def change(store: Store) -> None:
        assert store.folder is not None
        path = store.folder / RECEIPT
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def in_pairs(change: Callable[[Any, Any], None]) -> Change:
    """Changes the two objects of each record that has two."""

    def change_record(data: bytes) -> bytes:
        parsed = json.loads(data)
        if len(parsed["annotations"]) == 2:
            change(*parsed["annotations"])
        return json.dumps(parsed).encode()

    return in_tar("json", change_record)


def overlapping(first: Any, second: Any) -> None:
    second.update({name: first[name] for name in ("segmentation", "bbox", "area")})


def renamed(first: Any, second: Any) -> None:
    first["category_name"], second["category_name"] = second["category_name"], first["category_name"]


def in_labels(change: Callable[[Any], Any]) -> Change:
    return in_tar("seg.png", lambda data: encode_label_png(change(decode_label_png(data))))


def same_image(store: Store) -> None:
    images = [data for name, data in members_of(store) if name.endswith("jpg")]
    plant(store, changed(store, "jpg", lambda data: images[0] if data == images[3] else data))


CONTRADICTIONS: dict[str, tuple[Change, str]] = {
    "another plan": (in_receipt(plan="0" * 64), "the receipt belongs to a different plan"),
    "another number of samples": (in_receipt(accepted=4), "the receipt counts 4 of 5 samples, but the tar contains 5"),
    "another number of planned samples": (in_receipt(planned=9), "the receipt counts 5 of 9 samples"),
    "a sample that should be exhausted": (in_receipt(short=[3]), "missing samples: none; extra: 000000003"),
    "a missing sample": (
        lambda store: plant(store, packed([item for item in members_of(store) if KEY not in item[0]])),
        f"missing samples: {KEY}; extra: none",
    ),
    "another member": (
        lambda store: plant(store, packed([(f"{KEY}.aaa", b""), *members_of(store)])),
        f"{KEY}: its members are aaa, jpg, json, seg.png",
    ),
    "no measures": (in_tar("json", record(filters=None)), "the annotations do not fit the manifest"),
    "no attempts": (in_tar("json", record(attempts={})), "the annotations do not fit the manifest"),
    "another area": (in_tar("json", in_objects(area=1)), "area or box of"),
    "another box": (in_tar("json", in_objects(bbox=[0, 0, 1, 1])), "area or box of"),
    "overlapping masks": (in_pairs(overlapping), "overlaps another"),
    "names of other ids": (in_pairs(renamed), "has the id"),
    "other classes": (in_tar("json", record(classes=["hair drier", "dog"])), "the objects do not match the prompt"),
    "labels of another image": (in_labels(np.flipud), "the label image does not match the run lengths"),
    "ignored pixels in a mask": (
        in_labels(lambda labels: np.full_like(labels, IGNORE)), "the label image does not match the run lengths",
    ),
    "an image of another size": (
        in_tar("jpg", lambda data: encode_jpeg(np.zeros((32, 32, 3), np.uint8), 90)), "image (32, 32)",
    ),
    "labels of another size": (in_labels(lambda labels: labels[:, 1:]), "labels (63, 48)"),
    "the image of another sample": (same_image, f"000000003 has the same image as {KEY}"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_contradictions_are_reported_as_damage(tmp_path: Path, kind: str) -> None:
    store, _ = make_dataset(tmp_path, shards=range(1), n=SHARD_SIZE)
    change, message = CONTRADICTIONS[kind]
    change(store)
    problems = verify(store).damaged[0]
    assert any(message in problem for problem in problems), problems


def test_shard_whose_annotations_fit_no_manifest_is_deleted_by_a_repair(tmp_path: Path) -> None:
    """It was said to lack only its manifest, which the repair could not write."""
    store, _ = make_dataset(tmp_path, shards=range(1), n=SHARD_SIZE)
    in_tar("json", record(seed="one"))(store)
    report = verify(store)
    assert report.only_manifest == []
    assert repair(store, report).deleted == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_tar("latent.npy", lambda data: encode_array(np.full((4, 3, 2), np.nan, np.float16))), "not finite"),
        (in_tar("json", record(classes=["dog", "bus"])), "it names bus, which the split defines as unseen"),
        (in_tar("json", record(annotations=[])), "the objects do not match the prompt"),
    ],
)
def test_contradictions_of_oracles_are_reported_as_damage(tmp_path: Path, change: Change, message: str) -> None:
    seen = [name for name in NAMES if name != "bus"]
    options: dict[str, Any] = ORACLE | {"oracle": {"split": "all", "seen": seen}}
    store, _ = make_full_dataset(tmp_path, **options)
    assert verify(store).sound
    change(store)
    problems = verify(store).damaged[0]
    assert any(message in problem for problem in problems), problems
