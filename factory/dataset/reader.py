"""Reads the samples of a dataset as arrays, for notebooks, training code and checks."""

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.config.plan import Plan
from factory.config.recipe import Recipe
from factory.dataset.encode import EncodedSample
from factory.dataset.masks import decode_label_png, decode_rle
from factory.dataset.receipts import tar_name
from factory.dataset.shards import annotation_of, read_shard, readable
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import recipe_of
from factory.dataset.totals import finished_entries
from factory.errors import UserError, counted
from factory.files.decode import decode_jpeg
from factory.files.paths import address_text


@dataclass(frozen=True, repr=False, eq=False)
class DatasetSample:
    """An image with its masks.

    Attributes:
        key: The number of the sample in the dataset, as nine digits.
        image: RGB image, uint8 (H, W, 3).
        labels: Category id of each pixel, uint8 (H, W); 0 is background, and 255 marks pixels to ignore.
        record: The JSON document of the sample, with annotations, prompt, seed and provenance; see
            schemas/annotation.json.
    """

    key: str
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    record: dict[str, Any]

    def __repr__(self) -> str:
        height, width = self.labels.shape
        annotations = counted(len(self.annotations), "annotation")
        return f"DatasetSample({self.key!r}, {self.prompt!r}, {width} x {height}, {annotations})"

    @property
    def prompt(self) -> str:
        """The text that the image was generated from."""
        return str(self.record["prompt"])

    @property
    def annotations(self) -> list[dict[str, Any]]:
        """The COCO annotations of the instances, in the order of their ids.

        Each has `category_id`, `category_name`, `bbox` (left, top, width, height in pixels), `area` (pixels), `score`
        (0 to 1) and `segmentation` (compressed run lengths).
        """
        return list(self.record["annotations"])

    @property
    def masks(self) -> list[NDArray[np.bool_]]:
        """The mask of each annotation, bool (H, W), in the same order. Raises UserError if one is damaged."""
        try:
            return [decode_rle(annotation["segmentation"]) for annotation in self.record["annotations"]]
        except ValueError as error:
            raise UserError(
                f"the masks of sample {self.key} are damaged: {error}; repair it with `factory verify --repair`."
            ) from error


class Dataset:
    """The committed samples of a dataset.

    Iterating yields a `DatasetSample` for each sample in the order of the keys, and reads one shard at a time; `len`
    returns the number of samples. A dataset can be read while it is being generated: it then has the samples of the
    shards that were committed when it was opened.

    Worker processes can iterate over a dataset that was opened before they started, and each of them reads all samples.
    With a bucket, they must be started with the method "spawn". The samples have no index, so a PyTorch `DataLoader`
    cannot read them; let it read the shards with WebDataset, which divides them among its workers.

    Attributes:
        recipe: The recipe of the dataset.
    """

    def __init__(self, address: str | PathLike[str]) -> None:
        """Open a dataset; see `open_dataset`."""
        self._store = Store(address_text(address))
        self.recipe: Recipe = recipe_of(self._store)
        finished = finished_entries(self._store, Plan(self.recipe))
        self._tars = [tar_name(number) for number in finished]
        self._size = sum(entry.accepted for entry in finished.values())

    @property
    def class_names(self) -> dict[int, str]:
        """The name of each class by its category id."""
        return {entry.id: entry.name for entry in self.recipe.vocabulary().classes}

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"Dataset({self._store.address!r}, {len(self)} of {self.recipe.n} samples)"

    def __iter__(self) -> Iterator[DatasetSample]:
        """Iterate over all samples.

        Raises:
            UserError: A shard is missing or damaged.
        """
        for tar in self._tars:
            for sample in read_shard(self._store, tar):
                with readable(self._store, f"sample {sample.key} in {tar}"):
                    decoded = _decoded(sample)
                yield decoded  # outside of the `with`: at the exit of Python, an unfinished iteration would fail in it


def open_dataset(address: str | PathLike[str]) -> Dataset:
    """Open a dataset for reading.

    Args:
        address: Folder or URL (s3://, gs://, az://) of the dataset.

    Returns:
        The samples of all committed shards.

    Raises:
        UserError: There is no dataset at the address.
    """
    return Dataset(address)


def _decoded(sample: EncodedSample) -> DatasetSample:
    record = annotation_of(sample)
    image, labels = decode_jpeg(sample.members["jpg"]), decode_label_png(sample.members["seg.png"])
    size = (record["image"]["height"], record["image"]["width"])
    if image.shape[:2] != size or labels.shape != size:
        raise ValueError(f"its image is {image.shape[:2]}, its labels {labels.shape}, its annotation {size}")
    return DatasetSample(sample.key, image, labels, record)
