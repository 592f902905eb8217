"""Thumbnails of rejected images for reports, in one small, optional JSON file per shard.

They are not part of a shard: receipts do not name them, readers do not need them, and a run continues without them if
they cannot be written. Their bytes are determined by the recipe, like those of the shards.
"""

import base64
import binascii
import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image as Pictures

from factory.config.plan import shard_name
from factory.dataset.encode import encode_jpeg
from factory.dataset.masks import Mask, Rle, decode_rle, encode_rle
from factory.dataset.records import Image, Sample
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.files.decode import MAX_OBJECTS, decode_jpeg, decode_json

FOLDER = "rejected"
MAX_PER_REASON = 4
"""Maximum number of images per shard and reason; the first ones in the order of attempts are kept."""
MAX_SIDE = 128
"""Longer side of a thumbnail in pixels."""
_QUALITY = 85
_PATIENCE = 10.0


@dataclass(frozen=True)
class RejectedImage:
    """The thumbnail of a rejected attempt. `masks` are (category name, score, mask) at the thumbnail's size."""

    index: int
    attempt: int
    seed: int
    reason: str
    classes: tuple[str, ...]
    scores: Mapping[str, float | str]
    image: Image
    masks: tuple[tuple[str, float, Mask], ...]


class RejectedImages:
    """Collects the first `MAX_PER_REASON` rejected images of a shard for each reason, as JSON data."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._entries: list[dict[str, Any]] = []

    def add(self, sample: Sample, reason: str) -> None:
        """Keep the thumbnail of a rejected sample, unless there are enough for this reason."""
        self._counts[reason] += 1
        if self._counts[reason] > MAX_PER_REASON:
            return
        size = thumbnail_size(sample.image.shape[1], sample.image.shape[0])
        small = Pictures.fromarray(sample.image).resize(size, Pictures.Resampling.BOX)
        self._entries.append(
            {
                "index": sample.planned.index,
                "attempt": sample.attempt,
                "seed": sample.seed,
                "reason": reason,
                "classes": list(sample.planned.prompt.classes),
                "scores": dict(sample.scores),
                "objects": [
                    {
                        "category_name": instance.class_name,
                        "score": round(float(instance.score), 4),
                        "segmentation": encode_rle(resized_mask(instance.mask, size)),
                    }
                    for instance in sample.grounded.instances
                ],
                "jpeg": base64.b64encode(encode_jpeg(np.asarray(small), _QUALITY)).decode(),
            }
        )

    def save(self, store: Store, shard: int) -> None:
        """Write the file of a shard, if there is anything to write; failures are ignored."""
        if not self._entries:
            return
        data = json.dumps({"shard": shard, "images": self._entries}, sort_keys=True, separators=(",", ":")).encode()
        with contextlib.suppress(UserError):
            store.with_patience(_PATIENCE).put(rejected_name(shard), data)


def rejected_name(shard: int) -> str:
    """The file with the rejected images of a shard."""
    return f"{FOLDER}/{shard_name(shard)}.json"


def parse_rejected(data: bytes) -> list[RejectedImage]:
    """Parse the file of a shard; raises ValueError if it is not valid."""
    try:
        return [_parse(entry) for entry in decode_json(data)["images"]]
    except (KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ValueError(f"not a file of rejected images: {error!r}"[:200]) from error


def _parse(entry: dict[str, Any]) -> RejectedImage:
    image = decode_jpeg(base64.b64decode(entry["jpeg"], validate=True))
    if max(image.shape[:2]) > MAX_SIDE or len(entry["objects"]) > MAX_OBJECTS:
        raise ValueError(f"a thumbnail of {image.shape[1]} x {image.shape[0]} with {len(entry['objects'])} objects")
    masks = [
        (str(instance["category_name"]), float(instance["score"]), _mask(instance["segmentation"], image))
        for instance in entry["objects"]
    ]
    return RejectedImage(
        index=int(entry["index"]),
        attempt=int(entry["attempt"]),
        seed=int(entry["seed"]),
        reason=str(entry["reason"]),
        classes=tuple(str(name) for name in entry["classes"]),
        scores={str(name): value for name, value in entry["scores"].items() if isinstance(value, (int, float, str))},
        image=image,
        masks=tuple(masks),
    )


def _mask(rle: Rle, image: Image) -> Mask:
    if tuple(rle["size"]) != image.shape[:2]:
        raise ValueError(f"a mask of {str(rle['size'])[:40]} does not match its thumbnail")
    return decode_rle(rle)


def thumbnail_size(width: int, height: int, side: int = MAX_SIDE) -> tuple[int, int]:
    """(width, height) in pixels of a thumbnail with the same proportions and a longer side of at most `side`."""
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def resized_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask at the size (width, height) in pixels, by nearest neighbour."""
    resized = Pictures.fromarray(mask).resize(size, Pictures.Resampling.NEAREST)
    return np.asarray(resized, np.bool_)
