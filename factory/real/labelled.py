"""One labelled image, and where such images come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from factory.records import Image


@dataclass(frozen=True)
class LabelledImage:
    """`labels` is uint8 (H, W): 0 background, k the k-th class of the vocabulary, 255 to be ignored."""

    key: str
    image: Image
    labels: NDArray[np.uint8]


class LabelledFolder(Protocol):
    """Labelled images on disk."""

    @property
    def keys(self) -> Sequence[str]:
        """What the images are called, in order."""
        ...

    def load(self, key: str) -> LabelledImage:
        """One image with its labels; UserError where the two do not fit together."""
        ...
