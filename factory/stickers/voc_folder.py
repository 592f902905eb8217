"""Writes rendered scenes as a PASCAL VOC folder, as a substitute for labelled photographs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from factory.config.vocabulary import Vocabulary, coco
from factory.dataset.masks import palette_image
from factory.errors import UserError, not_written
from factory.files.atomic import replaced_atomically, write_atomically
from factory.files.listing import names_in
from factory.stickers.atlas import STYLES
from factory.stickers.backgrounds import KIND_SHARES
from factory.stickers.scenes import random_class_names, render_scene

_FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation")
_OPTIONS_FILE = "stickers.json"
VALIDATION_SHARE = 5
"""Every fifth image is in val.txt, the others are in train.txt."""


def write_voc_folder(
    out: Path,
    vocabulary: Vocabulary,
    num_images: int,
    styles: tuple[str, ...],
    size: int = 128,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
    kind_shares: tuple[float, ...] = KIND_SHARES,
) -> None:
    """Render `num_images` scenes of the vocabulary's classes into VOC's four folders.

    As in VOC, palette PNGs contain class indices in SegmentationClass and object numbers in SegmentationObject. 0 is
    background and 255 marks pixels along an object's edge, which evaluations ignore. Class indices are positions in the
    vocabulary, starting at 1, and lines of labels.txt. `kind_shares` are the probabilities of the kinds of background.
    The same arguments write the same bytes, and an interrupted run resumes. UserError if the folder contains anything
    else.
    """
    _check_styles(styles)
    embedded = [embedded_name(vocabulary, name) for name in vocabulary.names]
    options: dict[str, object] = {
        "classes": list(vocabulary.names), "num_images": num_images, "styles": list(styles), "size": size, "seed": seed
    }  # fmt: skip
    if kind_shares != KIND_SHARES:
        options["background"] = list(kind_shares)
    _claim(out, options)
    write_atomically(out / "labels.txt", "".join(f"{name}\n" for name in ("background", *vocabulary.names)))
    keys = [f"{number:06d}" for number in range(num_images)]
    for number, key in enumerate(keys):
        if not (out / "SegmentationObject" / f"{key}.png").exists():
            _write_scene(out, key, (seed, 5, number), embedded, styles, size, kind_shares)
        progress(number + 1)
    sets = out / "ImageSets" / "Segmentation"
    validation = {key for number, key in enumerate(keys) if number % VALIDATION_SHARE == VALIDATION_SHARE - 1}
    for name, members in (
        ("train", [key for key in keys if key not in validation]),
        ("val", [key for key in keys if key in validation]),
        ("trainval", keys),
    ):
        write_atomically(sets / f"{name}.txt", "".join(f"{key}\n" for key in members))


def embedded_name(vocabulary: Vocabulary, name: str) -> str:
    """The name of a class of the vocabulary in the embedded models.

    UserError, with some of the known classes and an alternative, for any class outside the 80.
    """
    known = coco()
    entry = vocabulary.resolve(name)
    for candidate in (entry.name, *entry.aliases):
        if candidate in known.names:
            return candidate
    raise UserError(
        f"the embedded models do not know {name!r}, only the 80 COCO classes ({', '.join(known.names[:4])}, ... "
        f"{known.names[-1]}). Choose among these; `factory generate --model` generates other classes."
    )


def _write_scene(
    out: Path,
    key: str,
    seed: tuple[int, ...],
    embedded: list[str],
    styles: tuple[str, ...],
    size: int,
    kind_shares: tuple[float, ...],
) -> None:
    names = random_class_names(np.random.default_rng(seed), embedded)
    scene = render_scene(seed, names, size, styles, kind_shares)
    indices = np.array([0, *(embedded.index(name) + 1 for name in scene.class_names)], np.uint8)
    edge = _edges(scene.instance_map)
    with replaced_atomically(out / "JPEGImages" / f"{key}.jpg") as partial:
        Image.fromarray(scene.image).save(partial, format="JPEG", quality=92)
    _save_labels(np.where(edge, 255, indices[scene.instance_map]), out / "SegmentationClass" / f"{key}.png")
    _save_labels(np.where(edge, 255, scene.instance_map), out / "SegmentationObject" / f"{key}.png")


def _edges(instance_map: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Object pixels with a different neighbour above, below, left or right."""
    edge = np.zeros(instance_map.shape, bool)
    across = instance_map[:, 1:] != instance_map[:, :-1]
    down = instance_map[1:] != instance_map[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge & (instance_map > 0)


def _save_labels(labels: NDArray[np.uint8], path: Path) -> None:
    """Write a palette PNG atomically."""
    with replaced_atomically(path) as partial:
        palette_image(labels.astype(np.uint8)).save(partial, format="PNG")


def _check_styles(styles: tuple[str, ...]) -> None:
    unknown = [style for style in styles if style not in STYLES]
    if unknown:
        raise UserError(f"there is no style {unknown[0]!r}; choose among {', '.join(STYLES)}.")


def _claim(out: Path, options: dict[str, object]) -> None:
    """Create the folders, or check that they belong to a run with the same options."""
    path = out / _OPTIONS_FILE
    try:
        if path.exists():
            existing = json.loads(path.read_text())
            changed = [key for key in {**options, **existing} if existing.get(key) != options.get(key)]
            if changed:
                raise UserError(
                    f"{out} contains a rendering with another {' and '.join(changed)}; choose another --out folder, or "
                    "use the same options to complete it."
                )
        elif out.exists() and (not out.is_dir() or names_in(out)):
            raise UserError(f"{out} exists and was not written by this command; choose a new or empty --out folder.")
        for folder in _FOLDERS:
            (out / folder).mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(options, indent=1) + "\n")
    except OSError as error:
        raise not_written(out, error, "choose another --out folder") from error
