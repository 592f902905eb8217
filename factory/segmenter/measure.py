"""Measure segmenters on labelled images, from options."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from factory.config.splits import unseen_classes
from factory.config.vocabulary import Vocabulary
from factory.errors import counted
from factory.hf_logging import quiet_model_libraries
from factory.segmenter.classes import common_vocabulary
from factory.training.devices import check_device_name, chosen_device
from factory.training.memory import enough_memory

if TYPE_CHECKING:
    from factory.labelled.interface import LabelledFolder
    from factory.segmenter.evaluate import SegmenterScore
    from factory.segmenter.model import Segmenter


@dataclass(frozen=True)
class RealImages:
    """Labelled images for evaluation: an image set of a PASCAL VOC folder, or COCO images if `annotations` is given.

    Without `image_set`, it is "val"; without `classes`, they are those of the segmenter. `split` divides them into seen
    and unseen ones.
    """

    root: Path
    image_set: str | None = None
    annotations: Path | None = None
    classes: str | None = None
    split: str | None = None


def evaluate_here(
    folder: Path,
    test: RealImages,
    device: str = "auto",
    threads: int = 0,
    report: Callable[[str], None] = lambda text: None,
) -> "SegmenterScore":
    """Evaluate a segmenter. UserError if its classes differ from those of `test`."""
    check_device_name(device)
    vocabulary = common_vocabulary([folder], test.classes)
    unseen = () if test.split is None else unseen_classes(vocabulary, test.split)
    images = open_test(test, vocabulary, report)
    device = chosen_device(device)
    return evaluate(open_segmenter(folder), images, unseen, device, threads, report)


def open_segmenter(folder: Path) -> "Segmenter":
    """Load a segmenter. UserError if it is incomplete."""
    quiet_model_libraries()
    from factory.segmenter.model import load_segmenter

    return load_segmenter(folder)


def open_test(test: RealImages, vocabulary: Vocabulary, report: Callable[[str], None]) -> "LabelledFolder":
    """Open the labelled images and report what cannot be used. UserError if they are invalid."""
    from factory.labelled.folders import check_no_image_set, open_labelled

    if test.annotations is not None:
        check_no_image_set(test.image_set)
    images = open_labelled(test.root, test.image_set or "val", test.annotations, vocabulary)
    for note in images.notes:
        report(note)
    return images


def evaluate(
    model: "Segmenter",
    images: "LabelledFolder",
    unseen: tuple[str, ...],
    device: str,
    threads: int,
    report: Callable[[str], None],
) -> "SegmenterScore":
    """The score of a segmenter on `images`, as opened by `open_segmenter` and `open_test`, on a resolved device."""
    import torch

    from factory.segmenter.evaluate import score

    if threads:
        torch.set_num_threads(threads)
    with enough_memory("the evaluation of the segmenter", "give --device cpu"):
        return score(model, images, unseen, device, lambda done: report(f"{done} of {counted(images.size, 'image')}"))
