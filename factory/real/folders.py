"""Which kind of labelled folder lies on disk."""

from collections.abc import Sequence
from pathlib import Path

from factory.real.coco import CocoFolder
from factory.real.labelled import LabelledFolder
from factory.real.voc import VocFolder
from factory.vocabulary import Vocabulary


def open_labelled(
    root: Path, image_set: str, annotations: Path | None, vocabulary: Vocabulary, only: Sequence[str] | None = None
) -> LabelledFolder:
    """COCO's images in `root` where there is a file of instances, else the image set of a PASCAL VOC folder.

    Where `only` names classes, images that show another one are left out. UserError where the folder lacks something.
    """
    if annotations is None:
        return VocFolder(root, image_set, vocabulary, only)
    return CocoFolder(root, annotations, vocabulary, only)
