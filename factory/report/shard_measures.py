"""Everything a report needs from one shard, as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.dataset.encode import EncodedSample
from factory.dataset.manifest import rejections
from factory.dataset.receipts import tar_name
from factory.dataset.records import Image
from factory.dataset.shards import annotation_of, read_shard, readable
from factory.dataset.storage import Store
from factory.files.decode import decode_jpeg
from factory.generation.filters import difference_hash
from factory.report.image_measures import ImageMeasures, feature_image, measure_jpeg
from factory.report.selection import Lowest, rank_of

IMAGE_SCORES = (*ImageMeasures._fields, "confidence", "detector_iou")
"""The columns of `ShardMeasures.scores`."""
AUDITED = 48
"""Images in the audit's random selection, and in its selection of the worst ones."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Example:
    """A sample that a report shows: its validated annotation and its JPEG."""

    record: dict[str, Any]
    jpeg: bytes


@dataclass
class ShardMeasures:
    """The measures of a shard's N samples and M objects.

    `hashes` has 64-bit numbers; `scores` is (N, len(IMAGE_SCORES)), NaN where a score was not recorded. `objects` is
    (M, 5): category id, area in pixels, area as a share of the image, and the centre of the box, 0 to 1 in x and y.
    `samples` holds (classes of the prompt, rejected attempts, category ids of the objects) of each sample.
    """

    shard: int
    indices: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    scores: list[tuple[float, ...]] = field(default_factory=list)
    objects: list[tuple[float, ...]] = field(default_factory=list)
    samples: list[tuple[list[str], int, list[int]]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    feature_images: list[Image] = field(default_factory=list)
    random: Lowest[Example] = field(default_factory=lambda: Lowest(AUDITED))
    worst: Lowest[Example] = field(default_factory=lambda: Lowest(AUDITED))


@dataclass(frozen=True)
class MeasureSettings:
    """How samples are read: the recipe's format, and the rank below which an image's features are computed."""

    format: int
    feature_rank: float


def measure_shard(store: Store, shard: int, settings: MeasureSettings) -> ShardMeasures:
    """Measure all samples of a shard. Raises UserError if its tar is missing or damaged."""
    measures, tar = ShardMeasures(shard), tar_name(shard)
    for sample in read_shard(store, tar, ("jpg", "json")):
        with readable(store, f"sample {sample.key} in {tar}"):
            _measure(sample, settings, measures)
    return measures


def _measure(sample: EncodedSample, settings: MeasureSettings, measures: ShardMeasures) -> None:
    record, jpeg = annotation_of(sample), sample.members["jpg"]
    try:
        filters, rejected = record["filters"], rejections(record, settings.format)
        scores = (*measure_jpeg(jpeg), _confidence(record), _number(filters.get("detector_iou")))
        code = int(filters["image_hash"], 16) if "image_hash" in filters else difference_hash(decode_jpeg(jpeg))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its annotation does not match schemas/annotation.json: {error!r}"[:200]) from error
    if not 0 <= code < 2**64:
        raise ValueError("its image_hash has more than 64 bits")
    measures.indices.append(record["image"]["id"])
    measures.hashes.append(code)
    measures.scores.append(scores)
    width, height = record["image"]["width"], record["image"]["height"]
    measures.sizes.append((width, height))
    measures.objects += [_object(annotation, width, height) for annotation in record["annotations"]]
    ids = [annotation["category_id"] for annotation in record["annotations"]]
    measures.samples.append((record["classes"], len(rejected), ids))
    rank, example = rank_of(sample.key), Example(record, jpeg)
    if rank < settings.feature_rank:
        measures.feature_images.append(feature_image(jpeg))
    measures.random.add(rank, sample.key, example)
    measures.worst.add(_worst_rank(scores), sample.key, example)


def _object(annotation: dict[str, Any], width: int, height: int) -> tuple[float, ...]:
    left, top, box_width, box_height = annotation["bbox"]
    area = annotation["area"]
    return (
        annotation["category_id"],
        area,
        area / (width * height),
        (left + box_width / 2) / width,
        (top + box_height / 2) / height,
    )


def _confidence(record: dict[str, Any]) -> float:
    """The lowest score of the sample's objects; NaN without objects."""
    return min((float(annotation["score"]) for annotation in record["annotations"]), default=np.nan)


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else np.nan


def _worst_rank(scores: Sequence[float]) -> float:
    """The rank among the worst samples: the lower of confidence and detector agreement; without both, 1."""
    return float(np.nanmin([*scores[-2:], 1.0]))
