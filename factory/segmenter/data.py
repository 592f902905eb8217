"""Samples of datasets as labelled images: a source of training samples, like a labelled folder."""

import shlex
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from factory.config.plan import Plan
from factory.config.recipe import Recipe
from factory.config.vocabulary import Vocabulary
from factory.dataset.continuation import without_samples
from factory.dataset.encode import EncodedSample
from factory.dataset.masks import IGNORE, decode_label_png
from factory.dataset.receipts import tar_name
from factory.dataset.shards import read_shard, readable
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import recipe_of
from factory.dataset.totals import finished_entries
from factory.errors import UserError, counted, first_few
from factory.files.decode import decode_jpeg
from factory.labelled.interface import LabelledImage
from factory.training.stream import Source

LabelledSource: TypeAlias = Source[LabelledImage]


@dataclass(frozen=True)
class _ShardSample:
    store: Store
    tar: str
    sample: EncodedSample
    lookup: NDArray[np.uint8]

    def decode(self) -> LabelledImage:
        key, members = self.sample.key, self.sample.members
        with readable(self.store, f"sample {key} in {self.tar}"):
            image, labels = decode_jpeg(members["jpg"]), decode_label_png(members["seg.png"])
            if image.shape[:2] != labels.shape:
                raise ValueError(f"its image has shape {image.shape[:2]}, its labels {labels.shape}")
        return LabelledImage(key, image, self.lookup[labels])


class DatasetSource:
    """A dataset, complete or not; its shards are the parts."""

    def __init__(self, store: Store, vocabulary: Vocabulary) -> None:
        """UserError if there is no dataset, no sample, or a class that is not in the vocabulary."""
        recipe = recipe_of(store)
        finished = finished_entries(store, Plan(recipe))
        self._store, self._names = store, [tar_name(number) for number in finished]
        self.size = sum(entry.accepted for entry in finished.values())
        if not self.size:
            raise without_samples(store, has_shards=bool(finished))
        self.identity = f"{self.size} samples of recipe {recipe.fingerprint()[:12]}"
        _check_classes(store, recipe, vocabulary)
        self._lookup = np.full(256, IGNORE, np.uint8)
        self._lookup[0] = 0
        for entry in recipe.vocabulary().classes:
            self._lookup[entry.id] = vocabulary.label_of(vocabulary.resolve(entry.name).name)

    def parts(self) -> int:
        """Number of committed shards."""
        return len(self._names)

    def samples(self, part: int) -> list[_ShardSample]:
        """The samples of a shard."""
        name = self._names[part]
        return [
            _ShardSample(self._store, name, sample, self._lookup)
            for sample in read_shard(self._store, name, ("jpg", "seg.png"))
        ]


def _check_classes(store: Store, recipe: Recipe, vocabulary: Vocabulary) -> None:
    """UserError if a class of the dataset is not in the vocabulary."""
    missing = [name for name in recipe.vocabulary().names if vocabulary.find(name) is None]
    if missing:
        names = recipe.classes if isinstance(recipe.classes, str) else ",".join(recipe.classes)
        raise UserError(
            f"{store.address} has {counted(len(missing), 'class', 'classes')} that the segmenter would not learn: "
            f"{first_few(missing)}. Give all classes of the dataset, as in --classes {shlex.quote(names)}."
        )
