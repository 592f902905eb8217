"""The manifest: one row per sample, a parquet file per shard, a function of the shard's annotations alone."""

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
"""The numbers that filters and generators measure; a sample has those that its recipe asks for."""
_MAX_BYTES = 2**30
"""Of a manifest's rows when they are read."""


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
"""Of datasets of format 1. Hugging Face `datasets` has no type for a map."""


def manifest_row(annotation: dict[str, Any], shard: int, layout: int = 2) -> dict[str, Any]:
    """The row of a sample's annotation; `layout` is the recipe's format. ValueError for a measure without a column."""
    objects = annotation["annotations"]
    measured = {name: value for name, value in annotation["filters"].items() if not isinstance(value, str)}
    if strange := measured.keys() - set(MEASURES):
        raise ValueError(f"the manifest has no column for {', '.join(sorted(strange))}")
    return {
        "key": annotation["key"],
        "index": annotation["image"]["id"],
        "shard": shard,
        "prompt": annotation["prompt"],
        "classes": annotation["classes"],
        "seed": annotation["seed"],
        "attempt": annotation["attempt"],
        "rejected": rejections(annotation, layout),
        "width": annotation["image"]["width"],
        "height": annotation["image"]["height"],
        "category_ids": [row["category_id"] for row in objects],
        "areas": [row["area"] for row in objects],
        "scores": [row["score"] for row in objects],
        "boxes_xywh": [row["bbox"] for row in objects],
        "image_hash": annotation["filters"].get("image_hash"),
        "filters": sorted(measured.items()) if layout == 1 else {name: measured.get(name) for name in MEASURES},
    }


def rejections(annotation: dict[str, Any], layout: int) -> list[str]:
    """The reasons of a sample's rejected attempts, in order."""
    if layout == 1:
        return [row["reason"] for row in annotation["rejected"]]
    return [row["outcome"] for row in annotation["attempts"][:-1]]


def manifest_table(samples: Iterable[EncodedSample], shard: int, layout: int = 2) -> pa.Table:
    """The rows of a shard's samples; ValueError where their annotations do not give them."""
    rows = [manifest_row(json.loads(sample.members["json"]), shard, layout) for sample in samples]
    try:
        return pa.Table.from_pylist(rows, schema=SCHEMA_1 if layout == 1 else SCHEMA)
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"the annotations give no manifest: {error}") from error


def manifest_of(samples: Iterable[EncodedSample], shard: int, layout: int = 2) -> bytes:
    """The parquet file of a shard's samples. Its bytes depend on the version of pyarrow, its rows do not."""
    stream = io.BytesIO()
    pq.write_table(manifest_table(samples, shard, layout), stream, compression="zstd")
    return stream.getvalue()


def read_manifest(data: bytes) -> list[dict[str, Any]]:
    """The rows of a manifest file; ValueError where it is no parquet of the dataset's schema, or too large."""
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        about, schema = file.metadata, file.schema_arrow
        size = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
        if about.num_rows > MAX_SAMPLES or size > _MAX_BYTES:
            raise ValueError(f"the manifest has {about.num_rows} rows of {size} bytes, more than a shard can have")
        if not schema.equals(SCHEMA) and not schema.equals(SCHEMA_1):
            raise ValueError("the manifest has other columns than the dataset's schema")
        rows: list[dict[str, Any]] = file.read().to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"no readable manifest: {error}") from error
    return rows
