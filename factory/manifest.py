"""The manifest: one row per sample, a parquet file per shard, a function of the shard's annotations alone."""

import io
import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.shards.encode import EncodedSample

SCHEMA = pa.schema(
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
        pa.field("filters", pa.map_(pa.string(), pa.float64()), nullable=False),
    ]
)


def manifest_row(annotation: dict[str, Any], shard: int) -> dict[str, Any]:
    """The row of one sample's annotation."""
    objects = annotation["annotations"]
    return {
        "key": annotation["key"],
        "index": annotation["image"]["id"],
        "shard": shard,
        "prompt": annotation["prompt"],
        "classes": annotation["classes"],
        "seed": annotation["seed"],
        "attempt": annotation["attempt"],
        "rejected": [row["reason"] for row in annotation["rejected"]],
        "width": annotation["image"]["width"],
        "height": annotation["image"]["height"],
        "category_ids": [row["category_id"] for row in objects],
        "areas": [row["area"] for row in objects],
        "scores": [row["score"] for row in objects],
        "boxes_xywh": [row["bbox"] for row in objects],
        "image_hash": annotation["filters"].get("image_hash"),
        "filters": sorted((name, value) for name, value in annotation["filters"].items() if not isinstance(value, str)),
    }


def manifest_of(samples: Iterable[EncodedSample], shard: int) -> bytes:
    """The parquet file of a shard's samples."""
    rows = [manifest_row(json.loads(sample.members["json"]), shard) for sample in samples]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), stream, compression="zstd")
    return stream.getvalue()


def read_manifest(data: bytes) -> list[dict[str, Any]]:
    """The rows of a manifest file; ValueError where it is no parquet of this schema."""
    try:
        table = pq.read_table(io.BytesIO(data))
    except pa.ArrowException as error:
        raise ValueError(f"no readable manifest: {error}") from error
    if not table.schema.equals(SCHEMA):
        raise ValueError("the manifest has other columns than the dataset's schema")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
