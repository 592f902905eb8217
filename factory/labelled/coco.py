"""COCO: a folder of images and a file of instance annotations."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from factory.config.vocabulary import Vocabulary
from factory.dataset.masks import IGNORE, Mask
from factory.dataset.records import Image
from factory.errors import UserError
from factory.labelled.annotations import Annotation, ImageRow, check_object, read_instances, wrong_segmentation
from factory.labelled.interface import LabelledFolder, LabelledImage, checked_vocabulary
from factory.labelled.picture import Photograph, read_photograph
from factory.labelled.segmentation import to_mask


class CocoFolder(LabelledFolder):
    """The images that an annotation file names, with their instances united by class.

    A pixel of two classes goes to the smaller instance, for it lies in front more often; crowds are ignored. Categories
    are found in the vocabulary as names of `--classes` are; those that it has not are background.
    """

    def __init__(
        self, root: Path, annotations: Path, vocabulary: Vocabulary, only: Sequence[str] | None = None
    ) -> None:
        """UserError where a file is missing or no annotation file. `only`: images with other classes are left out."""
        self.root = root
        if not root.is_dir() or not annotations.is_file():
            raise UserError(
                f"there is no {root if not root.is_dir() else annotations}; give COCO's folder of images, and its "
                f"instances_*.json with --annotations."
            )
        checked_vocabulary(vocabulary)
        self._instances = read_instances(annotations, root)
        entries = {number: vocabulary.find(name) for number, name in self._instances.categories.items()}
        self._place = {
            number: vocabulary.names.index(entry.name) + 1 for number, entry in entries.items() if entry is not None
        }
        wanted = None if only is None else {vocabulary.names.index(name) + 1 for name in only}
        if not self._place:
            raise UserError(
                f"{annotations} has no category of the vocabulary {vocabulary.name}; choose that of the file with "
                f"--classes."
            )
        self._images = {str(row.id): row for row in self._instances.images.values()}
        self._strange = Counter(
            self._instances.categories[one.category]
            for row in self._images.values()
            for one in row.objects
            if one.category not in self._place
        )
        for row in self._images.values():
            row.objects = [one for one in row.objects if one.category in self._place]
        self._vocabulary = vocabulary
        self.keys = [key for key, row in self._images.items() if self._usable(row, wanted)]
        if not self.keys:
            raise UserError(f"{annotations} names no image that may be used.")

    def load(self, key: str) -> LabelledImage:
        """One image with its labels."""
        row = self._images[key]
        image = self._fitting(row, read_photograph(self.root / row.file_name))
        height, width = image.shape[:2]
        labels = np.zeros((height, width), np.uint8)
        for one in sorted(row.objects, key=lambda one: -self._area(row, one, (height, width))):
            labels[self._mask(row, one, (height, width))] = IGNORE if one.crowd else self._place[one.category]
        return LabelledImage(key, image, labels)

    def check(self) -> None:
        """See `LabelledFolder`: every image is looked for, and every annotation is read."""
        instances, empty, used = self._instances, 0, 0
        for key in self.keys:
            row = self._images[key]
            if not (self.root / row.file_name).is_file():
                raise UserError(
                    f"{self.root / row.file_name} cannot be read: there is none; every image of {instances.path} needs "
                    f"its picture."
                )
            for one in row.objects:
                # Without a size in the file, the picture's is known when it is opened, and the check is made then.
                has_pixels = check_object(instances, row, one, row.size) if row.size else bool(one.segmentation)
                empty += not has_pixels
                used += has_pixels and not one.crowd
        if not used:
            raise UserError(
                f"{instances.path} has no object with pixels in the classes of {self._vocabulary.name}: {empty} have "
                f"no pixels, {sum(self._strange.values())} are of other categories, {instances.without_image} of no "
                f"image and {instances.without_category} of no category that the file lists."
            )
        self.notes += tuple(self._told(empty))

    def _told(self, empty: int) -> list[str]:
        path, notes = self._instances.path, []
        if self._strange:
            names = ", ".join(f"{name!r} ({count})" for name, count in self._strange.most_common(5))
            more = f" and {len(self._strange) - 5} more" if len(self._strange) > 5 else ""
            notes.append(
                f"{path}: objects of {names}{more} are background, for {self._vocabulary.name} has no such class."
            )
        for count, told in (
            (empty, "have no segmentation with pixels and are not used"),
            (self._instances.without_image, "name an image that the file does not list and are not used"),
            (self._instances.without_category, "name a category that the file does not list and are not used"),
        ):
            if count:
                notes.append(f"{path}: {count} annotations {told}.")
        return notes

    def _fitting(self, row: ImageRow, photograph: Photograph) -> Image:
        """The picture in the size that its annotations are in."""
        if row.size is None:
            return photograph.upright
        image = photograph.of_size(*row.size)
        if image is None:
            height, width = photograph.upright.shape[:2]
            raise UserError(
                f"{self.root / row.file_name} is {width} x {height} and its annotation {row.size[1]} x {row.size[0]}."
            )
        return image

    def _mask(self, row: ImageRow, one: Annotation, size: tuple[int, int]) -> Mask:
        try:
            return to_mask(one.segmentation, *size)
        except ValueError as error:
            raise wrong_segmentation(self._instances, row, one, error) from error

    def _area(self, row: ImageRow, one: Annotation, size: tuple[int, int]) -> float:
        return float(np.count_nonzero(self._mask(row, one, size))) if one.area is None else one.area

    def _usable(self, row: ImageRow, wanted: set[int] | None) -> bool:
        return wanted is None or {self._place[one.category] for one in row.objects} <= wanted
