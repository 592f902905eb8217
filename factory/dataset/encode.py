"""Encodes samples as members of a WebDataset tar file."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from factory.config.vocabulary import Vocabulary
from factory.dataset.masks import encode_label_png, label_map
from factory.dataset.records import Image, Sample, annotate

SUFFIXES = ("jpg", "json", "seg.png")
"""The members of a sample, in tar order."""
ORACLE_SUFFIXES = ("jpg", "json", "latent.npy", "seg.png")
"""The members of an oracle's sample, in tar order; `latent.npy` is float16 (C, h, w)."""


@dataclass(frozen=True)
class EncodedSample:
    """An encoded sample; `members` maps each of SUFFIXES or ORACLE_SUFFIXES to its bytes."""

    key: str
    members: Mapping[str, bytes]


def encode_sample(
    sample: Sample, vocabulary: Vocabulary, provenance: Mapping[str, Any], jpeg_quality: int
) -> EncodedSample:
    """Encode a sample. The result is deterministic: equal samples give equal bytes."""
    record = annotate(sample, vocabulary, provenance)
    ids = [annotation["category_id"] for annotation in record["annotations"]]
    masks = [instance.mask for instance in sample.grounded.instances]
    shape = (sample.image.shape[0], sample.image.shape[1])
    members = {
        "jpg": encode_jpeg(sample.image, jpeg_quality),
        "json": json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode(),
    }
    if sample.latent is not None:
        members["latent.npy"] = encode_array(sample.latent)
    members["seg.png"] = encode_label_png(label_map(shape, masks, ids, sample.grounded.ignore))
    return EncodedSample(sample.planned.key, members)


def encode_array(array: NDArray[np.float16]) -> bytes:
    """Encode a latent, float16 (C, h, w), as a .npy file."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def encode_jpeg(image: Image, quality: int) -> bytes:
    """Encode a JPEG without chroma subsampling; `quality` is 1 to 100."""
    stream = io.BytesIO()
    PILImage.fromarray(image).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()
