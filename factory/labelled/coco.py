"""COCO: a folder of images and a file of instance annotations."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from factory.config.vocabulary import Vocabulary
from factory.dataset.masks import IGNORE, Mask
from factory.dataset.records import Image
from factory.errors import UserError, counted
from factory.labelled.annotations import Annotation, ImageEntry, check_object, invalid_segmentation, read_instances
from factory.labelled.interface import LabelledFolder, LabelledImage, checked_vocabulary, spread
from factory.labelled.picture import Photograph, fits, read_photograph, read_size
from factory.labelled.segmentation import to_mask


class CocoFolder(LabelledFolder):
    """The images that an annotation file lists, with their instances merged by class.

    A pixel of two instances belongs to the smaller one, which is more often in front. Crowds are ignored. Categories
    are matched with the vocabulary like the names in `--classes`; others become background.
    """

    def __init__(
        self, root: Path, annotations: Path, vocabulary: Vocabulary, only: Sequence[str] | None = None
    ) -> None:
        """If `only` is given, images with other classes are left out. UserError if a file is missing or invalid."""
        self.root = root
        if not root.is_dir() or not annotations.is_file():
            missing = f"file {annotations}" if root.is_dir() else f"folder {root}"
            raise UserError(
                f"there is no {missing}; give the folder of the COCO images, and their instances_*.json with "
                f"--annotations."
            )
        checked_vocabulary(vocabulary)
        self._instances = read_instances(annotations, root)
        entries = {category: vocabulary.find(name) for category, name in self._instances.categories.items()}
        self._label_of = {
            category: vocabulary.label_of(entry.name) for category, entry in entries.items() if entry is not None
        }
        allowed = None if only is None else {vocabulary.label_of(name) for name in only}
        if not self._label_of:
            raise UserError(
                f"{annotations} has no category that is in {vocabulary.label}; choose the file's classes with "
                f"--classes."
            )
        self._images = {str(image.id): image for image in self._instances.images.values()}
        self._unmatched = Counter(
            self._instances.categories[annotation.category]
            for image in self._images.values()
            for annotation in image.objects
            if annotation.category not in self._label_of
        )
        for image in self._images.values():
            image.objects = [annotation for annotation in image.objects if annotation.category in self._label_of]
        self._vocabulary = vocabulary
        self.keys = [key for key, image in self._images.items() if self._usable(image, allowed)]
        if not self.keys:
            raise UserError(f"{annotations} lists no image that can be used.")

    def load(self, key: str) -> LabelledImage:
        """One image with its labels."""
        entry = self._images[key]
        image = self._matching(entry, read_photograph(self.root / entry.file_name))
        height, width = image.shape[:2]
        labels = np.zeros((height, width), np.uint8)
        # Largest first, so that smaller objects are painted over larger ones.
        for annotation in sorted(entry.objects, key=lambda annotation: -self._area(entry, annotation, (height, width))):
            mask = self._mask(entry, annotation, (height, width))
            labels[mask] = IGNORE if annotation.crowd else self._label_of[annotation.category]
        return LabelledImage(key, image, labels)

    def check(self) -> None:
        """See `LabelledFolder`: checks that every image exists, every annotation can be read, and some sizes agree."""
        instances, empty, crowds, used = self._instances, 0, 0, 0
        for key in self.keys:
            image = self._images[key]
            if not os.path.isfile(self.root / image.file_name):
                raise UserError(
                    f"{self.root / image.file_name} does not exist; every image of {instances.path} needs a file."
                )
            for annotation in image.objects:
                if image.size:
                    has_pixels = check_object(instances, image, annotation, image.size)
                else:  # the size is known only when the image is opened, so `load` checks the annotation
                    has_pixels = bool(annotation.segmentation)
                empty += not has_pixels
                crowds += has_pixels and annotation.crowd
                used += has_pixels and not annotation.crowd
        for image in map(self._images.__getitem__, spread(self.keys)):
            path = self.root / image.file_name
            size = read_size(path)
            if image.size is not None and not fits(path, *image.size):
                raise self._wrong_size(image, size)
        if not used:
            raise UserError(
                f"{instances.path} has no object with pixels whose class is in {self._vocabulary.label}: {empty} "
                f"have no pixels, {crowds} are crowds, {sum(self._unmatched.values())} are of other categories, "
                f"{instances.without_image} refer to an unlisted image and {instances.without_category} to an "
                f"unlisted category."
            )
        self.notes += tuple(self._notes(empty))

    def listed_labels(self, key: str) -> frozenset[int]:
        """See `LabelledFolder`."""
        return frozenset(self._label_of[annotation.category] for annotation in self._images[key].objects)

    def _content(self) -> Iterator[bytes]:
        with self._instances.path.open("rb") as stream:
            yield hashlib.file_digest(stream, "sha256").digest()
        for key in self.keys:
            yield str((self.root / self._images[key].file_name).stat().st_size).encode()

    def _notes(self, empty: int) -> list[str]:
        path, notes = self._instances.path, []
        if self._unmatched:
            names = ", ".join(f"{name!r} ({count})" for name, count in self._unmatched.most_common(5))
            rest = f" and {len(self._unmatched) - 5} more" if len(self._unmatched) > 5 else ""
            reason = f"{self._vocabulary.label} has no such class"
            notes.append(f"{path}: objects of {names}{rest} become background because {reason}.")
        for count, which in (
            (empty, "without pixels"),
            (self._instances.without_image, "of an image that the file does not list"),
            (self._instances.without_category, "of a category that the file does not list"),
        ):
            if count:
                notes.append(f"{path}: ignored {counted(count, 'annotation')} {which}.")
        return notes

    def _matching(self, entry: ImageEntry, photograph: Photograph) -> Image:
        """The image in the orientation whose size the annotation file gives."""
        if entry.size is None:
            return photograph.upright
        image = photograph.of_size(*entry.size)
        if image is None:
            height, width = photograph.upright.shape[:2]
            raise self._wrong_size(entry, (height, width))
        return image

    def _wrong_size(self, entry: ImageEntry, size: tuple[int, int]) -> UserError:
        assert entry.size is not None
        return UserError(
            f"{self.root / entry.file_name} has {size[1]} x {size[0]} pixels, but its annotation says {entry.size[1]} "
            f"x {entry.size[0]}; give the images for which {self._instances.path} was made."
        )

    def _mask(self, entry: ImageEntry, annotation: Annotation, size: tuple[int, int]) -> Mask:
        try:
            return to_mask(annotation.segmentation, *size)
        except ValueError as error:
            raise invalid_segmentation(self._instances, entry, annotation, error) from error

    def _area(self, entry: ImageEntry, annotation: Annotation, size: tuple[int, int]) -> float:
        if annotation.area:  # some tools write 0 for every object
            return annotation.area
        return float(np.count_nonzero(self._mask(entry, annotation, size)))

    def _usable(self, entry: ImageEntry, allowed: set[int] | None) -> bool:
        return allowed is None or {self._label_of[annotation.category] for annotation in entry.objects} <= allowed
