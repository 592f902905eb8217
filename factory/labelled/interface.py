"""One labelled image, and the folders on disk that such images come from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from factory.config.vocabulary import Vocabulary
from factory.dataset.masks import IGNORE
from factory.dataset.records import Image
from factory.errors import UserError


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
    notes: tuple[str, ...] = ()
    """Sentences about what was found and is not used, with counts: for the person who gave the folder."""

    @property
    def size(self) -> int:
        """Images in all."""
        return len(self.keys)

    @property
    def identity(self) -> str:
        """What tells these images from others, in words."""
        return f"{self.size} labelled images {hashlib.sha256(' '.join(self.keys).encode()).hexdigest()[:12]}"

    @abstractmethod
    def check(self) -> None:
        """Look for everything that can be known before work starts, and fill `notes`.

        UserError where a picture is missing, or where nothing is left to learn from.
        """

    @abstractmethod
    def load(self, key: str) -> LabelledImage:
        """One image with its labels; UserError where one cannot be read or the two do not fit together."""

    def parts(self) -> int:
        """Runs of `part_size` images."""
        return -(-self.size // self.part_size)

    def samples(self, part: int) -> list["PackedImage"]:
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


def checked_vocabulary(vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary; UserError where it has more classes than a label picture has values."""
    if len(vocabulary.classes) >= IGNORE:
        raise UserError(f"labels have room for {IGNORE - 1} classes, {vocabulary.name} has {len(vocabulary.classes)}.")
    return vocabulary


def inside(root: Path, name: str) -> PurePosixPath | None:
    """A path below `root` as its parts, None where it leads out of it; a leading slash means `root`, as in some lists.

    Both slashes part folders: lists are made on Windows too.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute():
        # A path of this machine that lies in the folder is meant as it is.
        whole = PurePosixPath(root.absolute().as_posix())
        path = path.relative_to(whole if path.is_relative_to(whole) else "/")
    if ".." in path.parts or not path.parts or "\0" in name or ":" in path.parts[0]:
        return None
    return path
