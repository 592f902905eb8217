"""Reads COCO instances files from any source: within limits, with normalised ids and every field checked."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factory.errors import UserError
from factory.files.decode import is_text
from factory.files.text import read_bytes
from factory.labelled.interface import inside
from factory.labelled.picture import MAX_PIXELS
from factory.labelled.segmentation import check

MAX_JSON_BYTES = 2 * 2**30
MAX_JSON_VALUES = 200_000_000
"""Maximum number of JSON values in a file, at 30 to 100 bytes of memory each; five times that of COCO and LVIS."""

Id = int | str

_INTEGER = re.compile(r"([-+]?[0-9]{1,30})(?:\.0*)?")


@dataclass
class Annotation:
    """One object, at position `index` of the file's annotations.

    `area` orders overlapping objects; None if the file does not give it. If it is None or 0, pixels are counted.
    """

    index: int
    category: Id
    segmentation: Any
    area: float | None
    crowd: bool


@dataclass
class ImageEntry:
    """One image and its objects in file order. `size` is (height, width), or None if the file does not give it."""

    id: Id
    file_name: str
    size: tuple[int, int] | None
    objects: list[Annotation] = field(default_factory=list)


@dataclass
class InstancesFile:
    """The file's images and categories by id, and the number of annotations that refer to neither."""

    path: Path
    images: dict[Id, ImageEntry]
    categories: dict[Id, str]
    without_image: int = 0
    without_category: int = 0


def read_instances(path: Path, root: Path) -> InstancesFile:
    """Read a COCO instances file whose images are in `root`.

    Annotations that refer to an image or a category that the file does not list are counted and skipped. Segmentations
    are not checked here; see `check_object`. UserError names the file, the id and the field that is missing or invalid.
    """
    data = _parsed(path)
    instances = InstancesFile(path, {}, {})
    for entry in _entries(data, "images", path):
        image = _image(entry, path, root)
        if image.id in instances.images:
            raise UserError(f"{path} has two images with the id {image.id}; ids must be unique.")
        instances.images[image.id] = image
    files: dict[str, Id] = {}
    for image in instances.images.values():
        other = files.setdefault(image.file_name, image.id)
        if other != image.id:
            raise UserError(
                f"{path}: images {other} and {image.id} have the same file_name {image.file_name}; merge them."
            )
    for entry in _entries(data, "categories", path):
        category = _id(entry.get("id"), f"{path}: a category", "id")
        if category in instances.categories:
            raise UserError(f"{path} has two categories with the id {category}; ids must be unique.")
        if not isinstance(entry.get("name"), str):
            raise UserError(f"{path}: the name of category {category} must be a string, got {entry.get('name')!r:.40}.")
        instances.categories[category] = entry["name"]
    for index, entry in enumerate(_entries(data, "annotations", path)):
        _add(instances, index, entry)
    return instances


def check_object(instances: InstancesFile, image: ImageEntry, annotation: Annotation, size: tuple[int, int]) -> bool:
    """Whether an object has pixels. UserError names the file, the annotation and the problem."""
    try:
        return check(annotation.segmentation, *size)
    except ValueError as error:
        raise invalid_segmentation(instances, image, annotation, error) from error


def invalid_segmentation(
    instances: InstancesFile, image: ImageEntry, annotation: Annotation, error: ValueError
) -> UserError:
    """The error for a segmentation that cannot be used."""
    return UserError(
        f"{instances.path}: the segmentation of annotation {annotation.index} (zero-based), image {image.id}, is "
        f"invalid: {error}."
    )


def _parsed(path: Path) -> Mapping[str, Any]:
    data = read_bytes(path, "annotation file", MAX_JSON_BYTES)
    values = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if values > MAX_JSON_VALUES:
        raise UserError(
            f"{path} has about {values:,} values, more than the limit of {MAX_JSON_VALUES:,}; split the file."
        )
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{path} is not a COCO instances file ({reason}).") from error
    if not isinstance(parsed, dict):
        raise UserError(f"{path} is not a COCO instances file: it holds a {type(parsed).__name__}, not an object.")
    return parsed


def _entries(data: Mapping[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    entries = data.get(name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path} is not a COCO instances file: it has no list of objects under {name!r}.")
    return entries


def _image(entry: Mapping[str, Any], path: Path, root: Path) -> ImageEntry:
    image_id = _id(entry.get("id"), f"{path}: an image", "id")
    where, name = f"{path}: image {image_id}", entry.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where} has no file_name; every image needs one, relative to the image folder.")
    relative = inside(root, name)
    if relative is None:
        raise UserError(f"{where}: file_name {name[:100]!r} is outside the image folder {root}.")
    sides = [_side(entry.get(side), where, side) for side in ("height", "width")]
    size = None if sides[0] is None or sides[1] is None else (sides[0], sides[1])
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise UserError(f"{where} has {size[1]} x {size[0]} pixels, more than the limit of {MAX_PIXELS:,}.")
    return ImageEntry(image_id, str(relative), size)


def _add(instances: InstancesFile, index: int, entry: Mapping[str, Any]) -> None:
    where = f"{instances.path}: annotation {index} (zero-based)"
    image_id = entry.get("image_id")
    image = instances.images.get(_id(image_id, where, "image_id")) if image_id is not None else None
    if image is None:
        instances.without_image += 1
        return
    category_id = entry.get("category_id")
    category = _id(category_id, where, "category_id") if category_id is not None else ""
    if category not in instances.categories:
        instances.without_category += 1
        return
    crowd = entry.get("iscrowd")
    if crowd not in (None, 0, 1, "0", "1"):
        raise UserError(f"{where}: iscrowd must be 0 or 1, got {crowd!r:.40}.")
    area = entry.get("area")
    pixels = None if area is None else _number(area)
    if area is not None and (pixels is None or pixels < 0):
        raise UserError(f"{where}: area must be a non-negative number, got {area!r:.40}.")
    image.objects.append(Annotation(index, category, entry.get("segmentation"), pixels, crowd in (1, "1")))


def _id(value: Any, where: str, name: str) -> Id:
    """A normalised id: 7, 7.0, "7" and "000007" are the same."""
    if is_text(value) and value.strip():
        integer = _INTEGER.fullmatch(value.strip())
        return int(integer[1]) if integer else value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise UserError(f"{where}: {name} must be an integer or a string, got {value!r:.40}.")


def _number(value: Any) -> float | None:
    """A finite number, also if given as a string; None for anything else."""
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
        raise UserError(f"{where}: {name} must be a positive whole number of pixels, got {value!r:.40}.")
    return int(number)
