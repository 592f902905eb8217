"""One labelled image, and the folders on disk that such images come from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures

from factory.errors import UserError
from factory.records import Image


@dataclass(frozen=True)
class LabelledImage:
    """`labels` is uint8 (H, W): 0 background, k the k-th class of the vocabulary, 255 to be ignored."""

    key: str
    image: Image
    labels: NDArray[np.uint8]


class LabelledFolder(ABC):
    """Labelled images on disk, read one at a time; `part_size` of them are a part."""

    part_size = 256
    keys: Sequence[str]
    """What the images are called, in order."""

    @property
    def size(self) -> int:
        """Images in all."""
        return len(self.keys)

    @property
    def identity(self) -> str:
        """What tells these images from others, in words."""
        return f"{self.size} labelled images {hashlib.sha256(' '.join(self.keys).encode()).hexdigest()[:12]}"

    @abstractmethod
    def load(self, key: str) -> LabelledImage:
        """One image with its labels; UserError where one cannot be read or the two do not fit together."""

    def parts(self) -> int:
        """Runs of `part_size` images."""
        return -(-self.size // self.part_size)

    def rows(self, part: int) -> list["PackedImage"]:
        """The images of a part."""
        return [PackedImage(self, key) for key in self.keys[part * self.part_size : (part + 1) * self.part_size]]


@dataclass(frozen=True)
class PackedImage:
    """An image that is not read yet."""

    of: LabelledFolder
    key: str

    def decode(self) -> LabelledImage:
        """Read it."""
        return self.of.load(self.key)


def read_picture(path: Path) -> Pictures.Image:
    """A picture, decoded. UserError where there is none or it is damaged."""
    try:
        picture = Pictures.open(path)
        picture.load()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); every image of the set needs its picture.") from error
    return picture
