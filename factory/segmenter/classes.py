"""What is known of segmenters without PyTorch: their architectures, and their classes.

The classes are those that are given, or else those of the data or of the trained model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factory.config.class_option import parse_classes
from factory.config.vocabulary import Vocabulary, coco, from_names, voc
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import RECIPE, recipe_of
from factory.errors import UserError, first_few, one_line
from factory.files.decode import read_json_object

ARCHITECTURES = ("segformer", "maskformer", "mask2former")
STORED = "segmenter.json"
"""The file in a segmenter's folder that contains its class names."""


def stored_segmenter(folder: Path) -> dict[str, Any]:
    """The content of `segmenter.json`; `names` starts with background. UserError if it is not a segmenter's folder."""
    try:
        stored = read_json_object(folder / STORED)
        if not isinstance(stored["names"], list) or not all(isinstance(name, str) for name in stored["names"]):
            raise ValueError("its names are not a list of texts")
        side = stored.get("run", {}).get("side")
        if side is not None and not (isinstance(side, int) and side > 0):
            raise ValueError(f"its side is {side!r:.40}, not a number of pixels")
        return {"names": tuple(stored["names"]), "side": side}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        inner = folder / "model"  # of the folder of a training run
        remedy = f"give {inner}" if (inner / STORED).is_file() else "train one with `factory train-segmenter`"
        problem = f"it has no {STORED}" if isinstance(error, FileNotFoundError) else one_line(error)
        raise UserError(f"{folder} is not a segmenter folder ({problem}); {remedy}.") from error


def vocabulary_of(folder: Path) -> Vocabulary:
    """The classes of a trained segmenter."""
    names = stored_segmenter(folder)["names"][1:]
    known = next((vocabulary for vocabulary in (voc(), coco()) if vocabulary.names == names), None)
    return known or from_names(names, str(folder / STORED))


def common_vocabulary(folders: Sequence[Path], classes: str | None) -> Vocabulary:
    """The classes that segmenters share. UserError if they differ from each other or from the given `classes`."""
    own = [vocabulary_of(folder) for folder in folders]
    for folder, vocabulary in zip(folders[1:], own[1:], strict=True):
        if vocabulary.names != own[0].names:
            raise UserError(
                f"{folder} has other classes than {folders[0]} ({_difference(own[0], vocabulary)}); evaluate "
                f"segmenters of different classes one at a time."
            )
    if classes is None:
        return own[0]
    given = parse_classes(classes)
    if given.names != own[0].names:
        raise UserError(
            f"{folders[0]} was trained for other classes than --classes gives ({_difference(own[0], given)}); omit "
            f"--classes to use those of the segmenter."
        )
    return given


def training_vocabulary(classes: str | None, datasets: Sequence[str], annotations: bool) -> Vocabulary:
    """The classes to train: the given ones, or else those of the datasets.

    Without datasets, they are those of the labelled folder's layout: COCO if it has `annotations`, else VOC. UserError
    if the datasets have different classes.
    """
    if classes is not None:
        return parse_classes(classes)
    own = [recipe_of(Store(address)).vocabulary() for address in datasets]
    if not own:
        return coco() if annotations else voc()
    for address, vocabulary in zip(datasets[1:], own[1:], strict=True):
        if _missing(own[0], vocabulary) or _missing(vocabulary, own[0]):
            raise UserError(
                f"{address} has other classes than {datasets[0]} ({_difference(own[0], vocabulary)}); give all classes "
                f"to learn with --classes."
            )
    return own[0]


def is_dataset(address: str) -> bool:
    """Whether an address is that of a dataset, not of a labelled folder."""
    return Store(address).get(RECIPE) is not None


def _missing(vocabulary: Vocabulary, other: Vocabulary) -> list[str]:
    """The classes of `other` that `vocabulary` does not have under any name."""
    return [name for name in other.names if vocabulary.find(name) is None]


def _difference(first: Vocabulary, second: Vocabulary) -> str:
    """What distinguishes two vocabularies, as a part of a message."""
    names = _missing(first, second) + _missing(second, first)
    return f"such as {first_few(names)}" if names else "the same in another order or by other names"
