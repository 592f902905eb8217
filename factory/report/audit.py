"""The samples that a report shows: random ones, the worst, rejected ones and near-duplicates."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.config.keys import key_of
from factory.dataset.receipts import tar_name
from factory.dataset.records import Image
from factory.dataset.rejected_images import RejectedImage, parse_rejected, rejected_name
from factory.dataset.shards import annotation_of, read_shard
from factory.dataset.storage import Store
from factory.errors import TransientError, UserError
from factory.report.duplicates import Duplicates
from factory.report.funnel import in_order_of_filters
from factory.report.selection import Lowest, rank_of
from factory.report.shard_measures import Example
from factory.report.thumbnails import example_thumbnail, rejected_thumbnail

REJECTED = 12
"""Rejected images shown per reason."""
_GROUPS, _PER_GROUP = 8, 3
"""Groups of near-duplicates shown, and images of each."""

Ids = Mapping[str, int]


class Audit:
    """Collects entries, as plain data, and their thumbnails by name."""

    def __init__(self, ids: Ids) -> None:
        """`ids` maps class names to category ids."""
        self.thumbnails: dict[str, Image] = {}
        self._ids = ids

    def samples(self, group: str, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Entries of accepted samples."""
        return [self._sample(group, number, example) for number, example in enumerate(examples)]

    def rejected(self, images: Mapping[str, Sequence[RejectedImage]]) -> dict[str, list[dict[str, Any]]]:
        """Entries of rejected images by reason."""
        return {
            reason: [self._rejected(f"{reason}-{number}", image) for number, image in enumerate(group)]
            for reason, group in images.items()
        }

    def _sample(self, group: str, number: int, example: Example) -> dict[str, Any]:
        record, name = example.record, f"{group}-{number}"
        self._draw(name, lambda: example_thumbnail(example))
        scores = [float(annotation["score"]) for annotation in record["annotations"]]
        iou = record["filters"].get("detector_iou")
        return {
            "thumbnail": name,
            "key": record["key"],
            "prompt": record["prompt"][:200],
            "classes": record["classes"],
            "ids": self._known_ids(record["classes"]),
            "confidence": min(scores, default=None),
            "detector_iou": float(iou) if isinstance(iou, (int, float)) else None,
        }

    def _rejected(self, name: str, image: RejectedImage) -> dict[str, Any]:
        self._draw(name, lambda: rejected_thumbnail(image))
        return {
            "thumbnail": name,
            "key": key_of(image.index),
            "attempt": image.attempt,
            "reason": image.reason,
            "classes": list(image.classes),
            "ids": self._known_ids(image.classes),
        }

    def _draw(self, name: str, draw: Callable[[], Image]) -> None:
        with suppress(ValueError):  # the page shows a placeholder; `verify` reports the damage
            self.thumbnails[name] = draw()

    def _known_ids(self, names: Sequence[str]) -> list[int]:
        return [self._ids[name] for name in names if name in self._ids]


def rejected_images(store: Store, shards: Sequence[int]) -> dict[str, list[RejectedImage]]:
    """A random selection of the rejected images of some shards, by reason. Missing and damaged files are skipped."""
    selections: dict[str, Lowest[RejectedImage]] = {}
    for _, tagged in store.get_many((rejected_name(shard) for shard in shards), derived=True):
        try:
            images = parse_rejected(tagged[0]) if tagged else []
        except ValueError:
            continue
        for image in images:
            key = f"{image.index}/{image.attempt}"
            selections.setdefault(image.reason, Lowest(REJECTED)).add(rank_of(key), key, image)
    return {reason: selections[reason].items() for reason in in_order_of_filters(selections)}


def duplicate_examples(
    store: Store, duplicates: Duplicates, indices: NDArray[np.int64], shard_of: Callable[[int], int]
) -> list[list[Example]]:
    """The first images of the largest groups.

    `indices` (N,) are sample indices; `shard_of` maps a position in them to its shard.
    """
    groups = []
    for group in duplicates.groups[:_GROUPS]:
        examples = [_example(store, shard_of(int(k)), key_of(int(indices[int(k)]))) for k in group[:_PER_GROUP]]
        groups.append([example for example in examples if example is not None])
    return groups


def _example(store: Store, shard: int, key: str) -> Example | None:
    try:
        samples = read_shard(store, tar_name(shard), ("jpg", "json"))
        return next(Example(annotation_of(sample), sample.members["jpg"]) for sample in samples if sample.key == key)
    except TransientError:
        raise
    except (UserError, ValueError, StopIteration):
        return None
