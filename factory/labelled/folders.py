"""Opens a labelled folder of either format."""

from collections.abc import Sequence
from pathlib import Path

from factory.config.vocabulary import Vocabulary
from factory.errors import UserError
from factory.labelled.coco import CocoFolder
from factory.labelled.interface import LabelledFolder
from factory.labelled.voc import VocFolder


def open_labelled(
    root: Path,
    image_set: str,
    annotations: Path | None,
    vocabulary: Vocabulary,
    only: Sequence[str] | None = None,
    checked: bool = True,
) -> LabelledFolder:
    """COCO's images in `root` if `annotations` is given, else an image set of the PASCAL VOC folder `root`.

    If `only` names classes, images that show any other class are left out. `checked` runs `LabelledFolder.check`, which
    fills `notes`; workers skip it because the driver has done it. UserError if the folder is incomplete or invalid.
    """
    folder: LabelledFolder
    if annotations is None:
        folder = VocFolder(root, image_set, vocabulary, only)
    else:
        folder = CocoFolder(root, annotations, vocabulary, only)
    if checked:
        folder.check()
    return folder


def check_no_image_set(image_set: str | None) -> None:
    """UserError if an image set is given for COCO images."""
    if image_set is not None:
        raise UserError(
            f"--real-set {image_set} has no effect with --annotations, because COCO images have no image sets; leave "
            f"one of the two out."
        )
