"""Labelled images, and the interface of the folders that they are read from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from factory.config.vocabulary import Vocabulary
from factory.dataset.masks import IGNORE
from factory.dataset.records import Image
from factory.errors import UserError

_MAX_CHECKED = 1000


@dataclass(frozen=True)
class LabelledImage:
    """An image with its labels.

    `image` is uint8 RGB (H, W, 3). `labels` is uint8 (H, W): 0 is background, k the k-th class of the vocabulary, and
    255 marks ignored pixels.
    """

    key: str
    image: Image
    labels: NDArray[np.uint8]


class LabelledFolder(ABC):
    """Labelled images on disk, read one at a time; `part_size` images form a part."""

    part_size = 256
    keys: Sequence[str]
    """Names of the images, in order."""
    notes: tuple[str, ...] = ()
    """Messages for the user about entries that are not used, with counts."""

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.keys)

    @property
    def identity(self) -> str:
        """A text that identifies the images and labels, independent of the location of the folder; part of checkpoints.

        UserError if a file cannot be read.
        """
        digest = hashlib.sha256("\n".join(self.keys).encode())
        try:
            for part in self._content():
                digest.update(hashlib.sha256(part).digest())
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read ({error.strerror}); replace the file.") from error
        return f"{self.size} labelled images {digest.hexdigest()[:12]}"

    @abstractmethod
    def _content(self) -> Iterator[bytes]:
        """The labels, and the size of each image file, because different images can have the same names.

        Reading the images would take as long as a pass over the training data.
        """

    @abstractmethod
    def check(self) -> None:
        """Find problems before the work starts, and fill `notes`.

        UserError if a file is missing or no usable label remains.
        """

    @abstractmethod
    def load(self, key: str) -> LabelledImage:
        """One image with its labels. UserError if either cannot be read or their sizes differ."""

    def listed_labels(self, key: str) -> frozenset[int]:
        """Labels of the objects that the annotations of an image list, including those without a pixel of their own.

        A crowd has only ignored pixels, and an object can be covered by others. Label images list no objects.
        """
        return frozenset()

    def parts(self) -> int:
        """Number of parts."""
        return -(-self.size // self.part_size)

    def samples(self, part: int) -> list["LazyImage"]:
        """The images of a part, not read yet."""
        return [LazyImage(self, key) for key in self.keys[part * self.part_size : (part + 1) * self.part_size]]


@dataclass(frozen=True)
class LazyImage:
    """An image that has not been read yet."""

    folder: LabelledFolder
    key: str

    def decode(self) -> LabelledImage:
        """Read the image and its labels."""
        return self.folder.load(self.key)


def spread(keys: Sequence[str]) -> Sequence[str]:
    """At most 1,000 keys, evenly spaced: the images that `LabelledFolder.check` opens, in seconds for any folder."""
    return keys[:: max(1, -(-len(keys) // _MAX_CHECKED))]


def checked_vocabulary(vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary. UserError if it has more classes than uint8 labels can represent."""
    if len(vocabulary.classes) >= IGNORE:
        raise UserError(
            f"labels can represent {IGNORE - 1} classes, but {vocabulary.label} has {len(vocabulary.classes)}."
        )
    return vocabulary


def inside(root: Path, name: str) -> PurePosixPath | None:
    """`name` as a path relative to `root`, or None if it leads outside.

    A leading slash means `root`, as in some image lists. Backslashes separate folders too: Windows tools write them.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute():
        # An absolute path below `root` is taken literally.
        absolute_root = PurePosixPath(root.absolute().as_posix())
        path = path.relative_to(absolute_root if path.is_relative_to(absolute_root) else "/")
    # A first folder such as `C:` or `https:` is a drive or the scheme of a URL; names such as `10:30.jpg` are allowed.
    if ".." in path.parts or not path.parts or "\0" in name or path.parts[0].endswith(":"):
        return None
    return path
