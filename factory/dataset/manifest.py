"""The manifest: one parquet file per shard with one row per sample, derived from the shard's annotations only."""

import io
import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.dataset.encode import EncodedSample
from factory.files.decode import MAX_SAMPLES

MEASURES = (
    "contrast", "area_smallest", "area_largest", "border", "confidence", "overlap", "detector_iou",
    "duplicate_distance", "psnr",
)  # fmt: skip
"""Scores of filters and generators; a sample has the scores that its recipe enables."""
_MAX_BYTES = 2**30
"""Limit on the uncompressed size of a manifest."""


def _schema(filters: pa.DataType) -> pa.Schema:
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("index", pa.int64(), nullable=False),
            pa.field("shard", pa.int32(), nullable=False),
            pa.field("prompt", pa.string(), nullable=False),
            pa.field("classes", pa.list_(pa.string()), nullable=False),
            pa.field("seed", pa.int64(), nullable=False),
            pa.field("attempt", pa.int32(), nullable=False),
            pa.field("rejected", pa.list_(pa.string()), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("category_ids", pa.list_(pa.int32()), nullable=False),
            pa.field("areas", pa.list_(pa.int64()), nullable=False),
            pa.field("scores", pa.list_(pa.float64()), nullable=False),
            pa.field("boxes_xywh", pa.list_(pa.list_(pa.int32())), nullable=False),
            pa.field("image_hash", pa.string(), nullable=True),
            pa.field("filters", filters, nullable=False),
        ]
    )


SCHEMA = _schema(pa.struct([pa.field(name, pa.float64()) for name in MEASURES]))
SCHEMA_1 = _schema(pa.map_(pa.string(), pa.float64()))
"""The schema of format 1. It was replaced because Hugging Face `datasets` does not support maps."""


def manifest_row(record: dict[str, Any], shard: int, recipe_format: int) -> dict[str, Any]:
    """The manifest row of a sample, given its json member. Raises ValueError for an unknown measure."""
    annotations = record["annotations"]
    measured = {name: value for name, value in record["filters"].items() if not isinstance(value, str)}
    if unknown := measured.keys() - set(MEASURES):
        raise ValueError(f"the manifest has no column for {', '.join(sorted(unknown))}")
    return {
        "key": record["key"],
        "index": record["image"]["id"],
        "shard": shard,
        "prompt": record["prompt"],
        "classes": record["classes"],
        "seed": record["seed"],
        "attempt": record["attempt"],
        "rejected": rejections(record, recipe_format),
        "width": record["image"]["width"],
        "height": record["image"]["height"],
        "category_ids": [annotation["category_id"] for annotation in annotations],
        "areas": [annotation["area"] for annotation in annotations],
        "scores": [annotation["score"] for annotation in annotations],
        "boxes_xywh": [annotation["bbox"] for annotation in annotations],
        "image_hash": record["filters"].get("image_hash"),
        "filters": sorted(measured.items()) if recipe_format == 1 else {name: measured.get(name) for name in MEASURES},
    }


def rejections(record: dict[str, Any], recipe_format: int) -> list[str]:
    """The rejection reasons of a sample's earlier attempts, in order."""
    if recipe_format == 1:
        return [attempt["reason"] for attempt in record["rejected"]]
    return [attempt["outcome"] for attempt in record["attempts"][:-1]]


def manifest_table(samples: Iterable[EncodedSample], shard: int, recipe_format: int) -> pa.Table:
    """The manifest of a shard as a table; raises ValueError if the annotations do not fit the schema."""
    try:
        rows = [manifest_row(json.loads(sample.members["json"]), shard, recipe_format) for sample in samples]
        return pa.Table.from_pylist(rows, schema=SCHEMA_1 if recipe_format == 1 else SCHEMA)
    except (pa.ArrowException, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the annotations do not fit the manifest schema: {error}") from error


def manifest_of(samples: Iterable[EncodedSample], shard: int, recipe_format: int) -> bytes:
    """The manifest of a shard as a parquet file. Its bytes depend on the version of pyarrow; its rows do not."""
    stream = io.BytesIO()
    pq.write_table(manifest_table(samples, shard, recipe_format), stream, compression="zstd")
    return stream.getvalue()


def read_manifest(data: bytes) -> list[dict[str, Any]]:
    """Read the rows of a manifest file; raises ValueError if it is not parquet, too large, or has another schema."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        metadata, schema = file.metadata, file.schema_arrow
        size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        if metadata.num_rows > MAX_SAMPLES or size > _MAX_BYTES:
            raise ValueError(
                f"the manifest has {metadata.num_rows} rows and {size} bytes, which exceeds the limits of a shard"
            )
        if not schema.equals(SCHEMA) and not schema.equals(SCHEMA_1):
            raise ValueError("the columns of the manifest do not match the schema")
        # Threads of pyarrow that still hold Python objects when the interpreter ends abort the process.
        rows: list[dict[str, Any]] = file.read(use_threads=False).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a readable manifest: {error}") from error
    return rows
