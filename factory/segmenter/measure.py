"""Measure segmenters on labelled images, from options."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from factory.config.class_option import parse_classes
from factory.errors import UserError
from factory.hf_logging import quiet_model_libraries

if TYPE_CHECKING:
    from factory.labelled.interface import LabelledFolder
    from factory.segmenter.evaluate import SegmenterScore
    from factory.segmenter.model import Segmenter


@dataclass(frozen=True)
class RealImages:
    """Labelled images for evaluation: an image set of a PASCAL VOC folder, or COCO images if `annotations` is given.

    Without `image_set`, it is "val". `split` divides the classes of the vocabulary into seen and unseen ones.
    """

    root: Path
    image_set: str | None = None
    annotations: Path | None = None
    classes: str = "voc"
    split: str | None = None


def evaluate_here(
    folder: Path,
    test: RealImages,
    device: str = "auto",
    threads: int = 0,
    report: Callable[[str], None] = lambda text: None,
) -> "SegmenterScore":
    """Evaluate a segmenter. UserError if its classes differ from those of `test`."""
    from factory.training.devices import chosen_device

    chosen = chosen_device(device)
    model = open_segmenter(folder, test)
    return evaluate(model, test, open_test(test, report), chosen, threads, report)


def open_segmenter(folder: Path, test: RealImages) -> "Segmenter":
    """Load a segmenter. UserError if it is incomplete or its classes differ from those of `test`."""
    quiet_model_libraries()
    from factory.segmenter.model import load_segmenter

    model, names = load_segmenter(folder), parse_classes(test.classes).names
    if model.names[1:] != names:
        raise UserError(
            f"{folder} has {len(model.names) - 1} classes ({', '.join(model.names[1:4])} ...), which differ from "
            f"those of {test.classes}; give the vocabulary that it was trained for with --classes."
        )
    return model


def open_test(test: RealImages, report: Callable[[str], None]) -> "LabelledFolder":
    """Open the labelled images and report what cannot be used. UserError if they or the split are invalid."""
    from factory.labelled.folders import check_no_image_set, open_labelled

    vocabulary = parse_classes(test.classes)
    if test.split is not None:
        vocabulary.unseen(test.split)
    if test.annotations is not None:
        check_no_image_set(test.image_set)
    images = open_labelled(test.root, test.image_set or "val", test.annotations, vocabulary)
    for note in images.notes:
        report(note)
    return images


def evaluate(
    model: "Segmenter",
    test: RealImages,
    images: "LabelledFolder",
    device: str,
    threads: int,
    report: Callable[[str], None],
) -> "SegmenterScore":
    """The score of a segmenter on `images`, as opened by `open_segmenter` and `open_test`, on a resolved device."""
    import torch

    from factory.segmenter.evaluate import score

    if threads:
        torch.set_num_threads(threads)
    unseen = parse_classes(test.classes).unseen(test.split) if test.split is not None else ()
    return score(model, images, unseen, device, lambda done: report(f"{done} of {images.size} images"))
