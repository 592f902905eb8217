"""A file of COCO instances made by others: read within limits, ids compared by what they mean, every field checked."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factory.errors import UserError
from factory.files.text import read_bytes
from factory.labelled.interface import inside
from factory.labelled.picture import MAX_PIXELS
from factory.labelled.segmentation import check

MAX_JSON_BYTES = 2 * 2**30
MAX_JSON_VALUES = 200_000_000
"""Values of the file, of 30 to 100 bytes of memory each. COCO's and LVIS's training files have a fifth of it."""

Id = int | str

_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Half a character, which JSON can hold and UTF-8 cannot."""
_WHOLE = re.compile(r"([-+]?[0-9]{1,30})(?:\.0*)?")


@dataclass
class Annotation:
    """One object. `area` orders overlapping objects; None where the file has none, and the pixels are counted."""

    place: int
    category: Id
    segmentation: Any
    area: float | None
    crowd: bool


@dataclass
class ImageRow:
    """One image and its objects in the file's order. `size` is (height, width), None where the file has none."""

    id: Id
    file_name: str
    size: tuple[int, int] | None
    objects: list[Annotation] = field(default_factory=list)


@dataclass
class Instances:
    """The file's images and categories by id, and how many annotations belong to none of them."""

    path: Path
    images: dict[Id, ImageRow]
    categories: dict[Id, str]
    without_image: int = 0
    without_category: int = 0


def read_instances(path: Path, root: Path) -> Instances:
    """Read a file of instances whose images lie in `root`.

    UserError names the file, the id and the field of what is missing or cannot be. Annotations of an image or a
    category that the file does not list are counted and left out. Segmentations are not looked at; see `check_objects`.
    """
    data = _parsed(path)
    found = Instances(path, {}, {})
    for row in _rows(data, "images", path):
        image = _image(row, path, root)
        if image.id in found.images:
            raise UserError(f"{path} has two images with the id {image.id}; give each its own.")
        found.images[image.id] = image
    files: dict[str, Id] = {}
    for image in found.images.values():
        other = files.setdefault(image.file_name, image.id)
        if other != image.id:
            raise UserError(f"{path}: the images {other} and {image.id} are both {image.file_name}; merge them.")
    for row in _rows(data, "categories", path):
        number = _id(row.get("id"), f"{path}: a category", "id")
        if number in found.categories:
            raise UserError(f"{path} has two categories with the id {number}; give each its own.")
        if not isinstance(row.get("name"), str):
            raise UserError(f"{path}: the name of category {number} is a text, got {row.get('name')!r:.40}.")
        found.categories[number] = row["name"]
    for place, row in enumerate(_rows(data, "annotations", path)):
        _add(found, place, row)
    return found


def check_object(instances: Instances, image: ImageRow, one: Annotation, size: tuple[int, int]) -> bool:
    """Whether an object has pixels; UserError names the file, the annotation and what is wrong."""
    try:
        return check(one.segmentation, *size)
    except ValueError as error:
        raise wrong_segmentation(instances, image, one, error) from error


def wrong_segmentation(instances: Instances, image: ImageRow, one: Annotation, error: ValueError) -> UserError:
    """The sentence for a segmentation that cannot be used."""
    return UserError(
        f"{instances.path}: the segmentation of annotation {one.place} (counted from 0), image {image.id}, cannot be "
        f"used: {error}."
    )


def _parsed(path: Path) -> Mapping[str, Any]:
    data = read_bytes(path, "annotation file", MAX_JSON_BYTES)
    values = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if values > MAX_JSON_VALUES:
        raise UserError(f"{path} has about {values:,} values; at most {MAX_JSON_VALUES:,} are read: split it.")
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        told = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{path} is no file of COCO instances ({told}).") from error
    if not isinstance(parsed, dict):
        raise UserError(f"{path} is no file of COCO instances: it holds a {type(parsed).__name__}, not an object.")
    return parsed


def _rows(data: Mapping[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    rows = data.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} is no file of COCO instances: it has no list of objects under {name!r}.")
    return rows


def _image(row: Mapping[str, Any], path: Path, root: Path) -> ImageRow:
    number = _id(row.get("id"), f"{path}: an image", "id")
    where, name = f"{path}: image {number}", row.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where} has no file_name; every image names its file in the folder of images.")
    below = inside(root, name)
    if below is None:
        raise UserError(f"{where}: its file_name {name[:100]!r} leads out of the folder of images, {root}.")
    sides = [_side(row.get(side), where, side) for side in ("height", "width")]
    size = None if sides[0] is None or sides[1] is None else (sides[0], sides[1])
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise UserError(f"{where} has {size[1]} x {size[0]} pixels, more than the {MAX_PIXELS:,} that are read.")
    return ImageRow(number, str(below), size)


def _add(found: Instances, place: int, row: Mapping[str, Any]) -> None:
    where = f"{found.path}: annotation {place} (counted from 0)"
    image = found.images.get(_id(row.get("image_id"), where, "image_id")) if row.get("image_id") is not None else None
    if image is None:
        found.without_image += 1
        return
    category = row.get("category_id")
    number = _id(category, where, "category_id") if category is not None else ""
    if number not in found.categories:
        found.without_category += 1
        return
    crowd = row.get("iscrowd")
    if crowd not in (None, 0, 1, "0", "1"):
        raise UserError(f"{where}: iscrowd is 0 or 1, got {crowd!r:.40}.")
    area = row.get("area")
    size = None if area is None else _number(area)
    if area is not None and (size is None or size < 0):
        raise UserError(f"{where}: area is a number from 0 up, got {area!r:.40}.")
    image.objects.append(Annotation(place, number, row.get("segmentation"), size, crowd in (1, "1")))


def _id(value: Any, where: str, name: str) -> Id:
    """An id by what it means: 7, 7.0, "7" and "000007" are one."""
    if isinstance(value, str) and value.strip() and not _SURROGATE.search(value):
        whole = _WHOLE.fullmatch(value.strip())
        return int(whole[1]) if whole else value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise UserError(f"{where}: {name} is a whole number or a text, got {value!r:.40}.")


def _number(value: Any) -> float | None:
    """A finite number, also one that is written as a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _side(value: Any, where: str, name: str) -> int | None:
    if value is None:
        return None
    number = _number(value)
    if number is None or number < 1 or not number.is_integer():
        raise UserError(f"{where}: {name} is a whole number of pixels, got {value!r:.40}.")
    return int(number)
