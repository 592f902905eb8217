"""The labelled images that a recipe inverts. They are checked before PyTorch is imported."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.config.sections import RealRecipe
from factory.config.vocabulary import Vocabulary
from factory.errors import UserError
from factory.labelled.folders import open_labelled
from factory.labelled.interface import LabelledFolder


def open_folder(real: RealRecipe, vocabulary: Vocabulary, checked: bool = False) -> LabelledFolder:
    """The labelled images of a recipe; `checked` as in `open_labelled`. Raises UserError if they are missing."""
    if real.dataset == "coco" and real.annotations is None:
        raise UserError("COCO images require an annotation file; give --annotations instances_train2017.json.")
    annotations = Path(real.annotations) if real.dataset == "coco" and real.annotations else None
    return open_labelled(Path(real.root), real.image_set, annotations, vocabulary, checked=checked)


def present(labels: NDArray[np.uint8], vocabulary: Vocabulary, min_share: float) -> list[str]:
    """The classes that cover at least `min_share` (0 to 1) of an image, the largest first; `labels` is (H, W)."""
    counts: Any = np.bincount(labels.ravel(), minlength=256)
    numbers = [k for k in range(1, len(vocabulary.classes) + 1) if counts[k] >= max(1.0, min_share * labels.size)]
    return [vocabulary.names[k - 1] for k in sorted(numbers, key=lambda k: (-counts[k], k))]
