"""Reads shards for exports, previews and training. Datasets may come from untrusted sources."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from factory.config.keys import check_key
from factory.dataset.encode import SUFFIXES, EncodedSample
from factory.dataset.storage import Store
from factory.dataset.tar import unpack
from factory.errors import UserError, command
from factory.files.decode import MAX_OBJECTS, MAX_PIXELS, decode_json, is_text


def read_shard(store: Store, name: str, suffixes: Sequence[str] = SUFFIXES) -> list[EncodedSample]:
    """The samples of a tar, each with at least the members `suffixes`.

    Raises UserError if the tar is missing, truncated, or contains anything that this program does not write.
    """
    data = store.get(name)
    if data is None:
        raise UserError(f"{name} of {store.address} is missing; {_repair_hint(store)}.")
    with readable(store, name):
        samples = list(unpack(data))
        for sample in samples:
            if missing := [suffix for suffix in suffixes if suffix not in sample.members]:
                raise ValueError(f"sample {sample.key} has no {', '.join(missing)}")
    return samples


@contextlib.contextmanager
def readable(store: Store, name: str) -> Iterator[None]:
    """Turn a decoder's ValueError into a UserError that names the file and the repair command."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{name} of {store.address} is damaged: {error}; {_repair_hint(store)}.") from error


def _repair_hint(store: Store) -> str:
    return f"repair the dataset with {command('verify', store.address, '--repair')}"


def annotation_of(sample: EncodedSample) -> dict[str, Any]:
    """Parse and validate the json member of a sample; raises ValueError if it is invalid.

    Keys and file names must be the sample's own, numbers must be within bounds, and masks must have the image's size.
    A valid record therefore cannot name other files or require more memory than an image of `MAX_PIXELS`.
    """
    record = decode_json(sample.members["json"])
    try:
        image, size = record["image"], (record["image"]["height"], record["image"]["width"])
        key, index = check_key(record["key"]), int(sample.key)
        if key != sample.key or image["file_name"] != f"{key}.jpg" or not _is_int(image["id"], index, index):
            raise ValueError(f"its annotation belongs to {str(record['key'])[:60]!r}, {str(image['file_name'])[:60]!r}")
        if not all(_is_int(side, 1, MAX_PIXELS) for side in size) or math.prod(size) > MAX_PIXELS:
            raise ValueError(f"its annotation has the size {str(size)[:60]}; the limit is {MAX_PIXELS} pixels")
        if not is_text(record["prompt"]) or not _are_texts(record["classes"]):
            raise ValueError("its prompt and classes must be Unicode strings")
        if not isinstance(record["annotations"], list) or len(record["annotations"]) > MAX_OBJECTS:
            raise ValueError(f"its annotations must be a list of at most {MAX_OBJECTS} objects")
        for number, annotation in enumerate(record["annotations"], 1):
            if field := _invalid_field(annotation, index, size):
                raise ValueError(f"{field} of its object {number} does not match schemas/annotation.json")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its annotation does not match schemas/annotation.json: {error!r}"[:200]) from error
    return dict(record)


def _invalid_field(annotation: Any, index: int, size: tuple[int, int]) -> str | None:
    """The name of the first invalid field, if any."""
    rle, pixels, score = annotation["segmentation"], math.prod(size), annotation["score"]
    checks = {
        "id": _is_int(annotation["id"], 0, 2**62),
        "image_id": _is_int(annotation["image_id"], index, index),
        "category_id": _is_int(annotation["category_id"], 1, 254),
        "category_name": is_text(annotation["category_name"]),
        "segmentation": rle["size"] == list(size) and isinstance(rle["counts"], str),
        "bbox": len(annotation["bbox"]) == 4 and all(_is_int(value, 0, pixels) for value in annotation["bbox"]),
        "area": _is_int(annotation["area"], 1, pixels),
        "iscrowd": _is_int(annotation["iscrowd"], 0, 0),
        "score": isinstance(score, (int, float)) and not isinstance(score, bool) and 0 <= score <= 1,
    }
    return next((name for name, valid in checks.items() if not valid), None)


def _is_int(value: object, minimum: int, maximum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(map(is_text, values))
