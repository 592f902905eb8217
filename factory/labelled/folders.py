"""Which kind of labelled folder lies on disk."""

from collections.abc import Sequence
from pathlib import Path

from factory.config.vocabulary import Vocabulary
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
    """COCO's images in `root` where there is a file of instances, else the image set of a PASCAL VOC folder.

    Where `only` names classes, images that show another one are left out. UserError where the folder lacks something.
    `checked` looks for all that can be known now and fills `notes`; a worker does without what its driver has done.
    """
    folder: LabelledFolder
    if annotations is None:
        folder = VocFolder(root, image_set, vocabulary, only)
    else:
        folder = CocoFolder(root, annotations, vocabulary, only)
    if checked:
        folder.check()
    return folder
