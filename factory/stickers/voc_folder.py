"""Rendered scenes as a PASCAL VOC folder: the stand-in for real labelled photographs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from factory.config.vocabulary import Vocabulary, coco
from factory.dataset.masks import palette_image
from factory.errors import UserError
from factory.files.listing import names_in
from factory.stickers.atlas import STYLES
from factory.stickers.scenes import random_class_names, render_scene

_FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation")
_STATEMENT = "stickers.json"
VALIDATION_SHARE = 5
"""Every fifth picture is in val.txt, the others in train.txt."""


def write_voc_folder(
    out: Path,
    vocabulary: Vocabulary,
    num_images: int,
    styles: tuple[str, ...],
    size: int = 128,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Render `num_images` scenes of the vocabulary's classes into VOC's four folders.

    Palette PNGs as VOC has them: class indices in SegmentationClass, object numbers in SegmentationObject, 0 for
    background and 255 for the pixels along an object's edge, which VOC leaves out of its scores. Indices are the
    positions in the vocabulary, from 1: the lines of labels.txt. The same arguments write the same bytes; a run that
    was cut short goes on where it stopped. Raises UserError for a folder that holds something else.
    """
    _check(num_images, size, styles)
    embedded = [embedded_name(vocabulary, name) for name in vocabulary.names]
    statement = {
        "classes": list(vocabulary.names), "num_images": num_images, "styles": list(styles), "size": size, "seed": seed
    }  # fmt: skip
    _claim(out, statement)
    (out / "labels.txt").write_text("".join(f"{name}\n" for name in ("background", *vocabulary.names)))
    keys = [f"{number:06d}" for number in range(num_images)]
    for number, key in enumerate(keys):
        if not (out / "SegmentationObject" / f"{key}.png").exists():
            _write_scene(out, key, (seed, 5, number), embedded, styles, size)
        progress(number + 1)
    sets = out / "ImageSets" / "Segmentation"
    held = {key for number, key in enumerate(keys) if number % VALIDATION_SHARE == VALIDATION_SHARE - 1}
    for name, chosen in (
        ("train", [key for key in keys if key not in held]),
        ("val", [key for key in keys if key in held]),
        ("trainval", keys),
    ):
        (sets / f"{name}.txt").write_text("".join(f"{key}\n" for key in chosen))


def embedded_name(vocabulary: Vocabulary, name: str) -> str:
    """The sticker world's name of a vocabulary's class.

    Raises UserError, with what the embedded models know and what to do, for a class outside the 80.
    """
    known = coco()
    entry = vocabulary.resolve(name)
    for candidate in (entry.name, *entry.aliases):
        if candidate in known.names:
            return candidate
    raise UserError(
        f"The embedded models do not know {name!r}: they know the 80 COCO classes ({', '.join(known.names[:4])}, ... "
        f"{known.names[-1]}). Choose among these, or name another model with --model FOLDER or --model HUB_ID."
    )


def _write_scene(
    out: Path, key: str, seed: tuple[int, ...], embedded: list[str], styles: tuple[str, ...], size: int
) -> None:
    names = random_class_names(np.random.default_rng(seed), embedded)
    scene = render_scene(seed, names, size, styles)
    indices = np.array([0, *(embedded.index(name) + 1 for name in scene.class_names)], np.uint8)
    edge = _edges(scene.instance_map)
    Image.fromarray(scene.image).save(out / "JPEGImages" / f"{key}.jpg", quality=92)
    _save_labels(np.where(edge, 255, indices[scene.instance_map]), out / "SegmentationClass" / f"{key}.png")
    _save_labels(np.where(edge, 255, scene.instance_map), out / "SegmentationObject" / f"{key}.png")


def _edges(instance_map: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The object pixels that touch something else above, below or beside them."""
    edge = np.zeros(instance_map.shape, bool)
    across = instance_map[:, 1:] != instance_map[:, :-1]
    down = instance_map[1:] != instance_map[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge & (instance_map > 0)


def _save_labels(labels: NDArray[np.uint8], path: Path) -> None:
    """A palette PNG, whole or not at all."""
    partial = path.with_suffix(".partial")
    palette_image(labels.astype(np.uint8)).save(partial, format="PNG")
    partial.replace(path)


def _check(num_images: int, size: int, styles: tuple[str, ...]) -> None:
    if num_images < 1:
        raise UserError(f"--n is the number of images to render, at least 1; got {num_images}.")
    if not 32 <= size <= 1024:
        raise UserError(f"--size is the side of an image in pixels, 32 to 1024; got {size}.")
    unknown = [style for style in styles if style not in STYLES]
    if unknown:
        raise UserError(f"There is no style {unknown[0]!r}; the styles are {', '.join(STYLES)}.")


def _claim(out: Path, statement: dict[str, object]) -> None:
    """Make the folders, or see that they are of the same run."""
    path = out / _STATEMENT
    try:
        if path.exists():
            found = json.loads(path.read_text())
            changed = [key for key, value in statement.items() if found.get(key) != value]
            if changed:
                raise UserError(
                    f"{out} holds a rendering with another {' and '.join(changed)}; choose another --out folder, or "
                    "the same options to complete it."
                )
        elif out.exists() and (not out.is_dir() or names_in(out)):
            raise UserError(f"{out} exists and is no rendering of this command; choose a new or empty --out folder.")
        for folder in _FOLDERS:
            (out / folder).mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(statement, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another --out folder.") from error
