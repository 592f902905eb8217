"""Shards read back: by exports, pictures and trainings, of datasets that may have been made elsewhere."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from factory.config.keys import check_key
from factory.dataset.encode import SUFFIXES, EncodedSample
from factory.dataset.storage import Store
from factory.dataset.tar import unpack
from factory.errors import UserError
from factory.files.decode import MAX_OBJECTS, MAX_PIXELS, decode_json


def read_shard(store: Store, name: str, suffixes: Sequence[str] = SUFFIXES) -> list[EncodedSample]:
    """The samples of a tar, each with at least the members `suffixes`.

    UserError where the tar is gone, cut off, or holds anything that this program does not write.
    """
    data = store.get(name)
    if data is None:
        raise UserError(f"{name} of {store.address} is gone; {_repair(store)}.")
    with readable(store, name):
        samples = list(unpack(data))
        for sample in samples:
            if lacking := [suffix for suffix in suffixes if suffix not in sample.members]:
                raise ValueError(f"sample {sample.key} has no {', '.join(lacking)}")
    return samples


@contextlib.contextmanager
def readable(store: Store, name: str) -> Iterator[None]:
    """Turn a ValueError of a decoder into a sentence that names the file and what to do."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{name} of {store.address} is damaged: {error}; {_repair(store)}.") from error


def _repair(store: Store) -> str:
    return f"repair the dataset with `factory verify {store.address} --repair`"


def annotation_of(sample: EncodedSample) -> dict[str, Any]:
    """The json member of a sample, checked in all that readers build upon; ValueError where it is anything else.

    Keys and file names are the sample's own, numbers are in their bounds, and masks have the image's size: nothing in
    it can name another file or ask for more memory than an image of `MAX_PIXELS`.
    """
    row = decode_json(sample.members["json"])
    try:
        image, size = row["image"], (row["image"]["height"], row["image"]["width"])
        key, index = check_key(row["key"]), int(sample.key)
        if key != sample.key or image["file_name"] != f"{key}.jpg" or not _is_whole(image["id"], index, index):
            raise ValueError(f"its annotation is of {str(row['key'])[:60]!r}, {str(image['file_name'])[:60]!r}")
        if not all(_is_whole(side, 1, MAX_PIXELS) for side in size) or math.prod(size) > MAX_PIXELS:
            raise ValueError(f"its annotation tells a size of {str(size)[:60]}, at most {MAX_PIXELS} pixels are read")
        if not isinstance(row["prompt"], str) or not _are_texts(row["classes"]):
            raise ValueError("its prompt and classes are no texts")
        if not isinstance(row["annotations"], list) or len(row["annotations"]) > MAX_OBJECTS:
            raise ValueError(f"its objects are no list of at most {MAX_OBJECTS}")
        for place, annotation in enumerate(row["annotations"], 1):
            if wrong := _wrong(annotation, index, size):
                raise ValueError(f"{wrong} of its object {place} is not as schemas/annotation.json has it")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its annotation is not as schemas/annotation.json has it: {error!r}"[:200]) from error
    return dict(row)


def _wrong(row: Any, index: int, size: tuple[int, int]) -> str | None:
    """The name of the first field that is not what readers expect, if any."""
    rle, most, score = row["segmentation"], math.prod(size), row["score"]
    checks = {
        "id": _is_whole(row["id"], 0, 2**62),
        "image_id": _is_whole(row["image_id"], index, index),
        "category_id": _is_whole(row["category_id"], 1, 254),
        "category_name": isinstance(row["category_name"], str),
        "segmentation": rle["size"] == list(size) and isinstance(rle["counts"], str),
        "bbox": len(row["bbox"]) == 4 and all(_is_whole(value, 0, most) for value in row["bbox"]),
        "area": _is_whole(row["area"], 1, most),
        "iscrowd": _is_whole(row["iscrowd"], 0, 0),
        "score": isinstance(score, (int, float)) and not isinstance(score, bool) and 0 <= score <= 1,
    }
    return next((name for name, right in checks.items() if not right), None)


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
