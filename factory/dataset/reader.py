"""Read the samples of a dataset as arrays: for notebooks, training code and checks."""

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
from factory.files.decode import decode_jpeg
from factory.files.paths import path_text


@dataclass(frozen=True)
class DatasetSample:
    """One image with its masks.

    `image` is uint8 (H, W, 3) in RGB. `labels` is uint8 (H, W): category ids, 0 for background and 255 for pixels to
    ignore. `annotations` are COCO annotations, one per instance, with `category_id`, `category_name`, `bbox`, `area`,
    `score` and a run-length `segmentation`. `record` is the sample's whole JSON document, provenance included.
    """

    key: str
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    record: dict[str, Any]

    @property
    def prompt(self) -> str:
        """The text that the image was generated from."""
        return str(self.record["prompt"])

    @property
    def annotations(self) -> list[dict[str, Any]]:
        """The instances, in the order of their ids."""
        return list(self.record["annotations"])

    @property
    def masks(self) -> list[NDArray[np.bool_]]:
        """A boolean mask (H, W) for each annotation, in the same order."""
        return [decode_rle(annotation["segmentation"]) for annotation in self.record["annotations"]]


class Dataset:
    """The committed samples of a dataset, in the order of their keys; shards are read one at a time.

    A dataset that is still being generated can be read: it has the samples of the shards committed when it was opened.
    """

    def __init__(self, address: str | PathLike[str]) -> None:
        """`address` is a folder or a URL such as s3://bucket/path. Raises UserError if it is not a dataset."""
        self._store = Store(path_text(address, "the address of a dataset"))
        self.recipe: Recipe = recipe_of(self._store)
        finished = finished_entries(self._store, Plan(self.recipe))
        self._tars = [tar_name(number) for number in finished]
        self._size = sum(entry.accepted for entry in finished.values())

    @property
    def class_names(self) -> dict[int, str]:
        """Category id to class name."""
        return {entry.id: entry.name for entry in self.recipe.vocabulary().classes}

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[DatasetSample]:
        """Iterate over all samples. Raises UserError for a shard that is missing or damaged."""
        for tar in self._tars:
            for sample in read_shard(self._store, tar):
                with readable(self._store, f"sample {sample.key} in {tar}"):
                    yield _decoded(sample)


def open_dataset(address: str | PathLike[str]) -> Dataset:
    """Open a dataset in a folder or a bucket for reading. Raises UserError if it is not a dataset."""
    return Dataset(address)


def _decoded(sample: EncodedSample) -> DatasetSample:
    record = annotation_of(sample)
    image, labels = decode_jpeg(sample.members["jpg"]), decode_label_png(sample.members["seg.png"])
    size = (record["image"]["height"], record["image"]["width"])
    if image.shape[:2] != size or labels.shape != size:
        raise ValueError(f"its image is {image.shape[:2]}, its labels {labels.shape}, its annotation {size}")
    return DatasetSample(sample.key, image, labels, record)
