"""Hugging Face export: data/train-00000-of-00002.parquet and so on, with a dataset card for `datasets`."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from factory.dataset.card import as_text
from factory.dataset.description import CARD
from factory.errors import UserError
from factory.export.folder import STATE
from factory.export.interface import SPLITS, ExportInfo, ExportSample, Records
from factory.files.atomic import synchronise_all, write_atomically

UNIT_BYTES = 200_000_000
_GROUP_BYTES = 16_000_000
"""Bytes of images per row group: what a reader has to load for a single row."""
_NAMES = {"train": "train", "val": "validation"}
"""The names of the splits in Hugging Face datasets."""
_BYTES_AND_PATH = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("image", _BYTES_AND_PATH),
        ("label", _BYTES_AND_PATH),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("prompt", pa.string()),
        (
            "objects",
            pa.struct(
                [
                    ("id", pa.list_(pa.int64())),
                    ("category", pa.list_(pa.int64())),
                    ("category_id", pa.list_(pa.int32())),
                    ("bbox", pa.list_(pa.list_(pa.float32(), 4))),
                    ("area", pa.list_(pa.int64())),
                    ("score", pa.list_(pa.float32())),
                    ("rle", pa.list_(pa.string())),
                ]
            ),
        ),
    ]
)


class HuggingFaceFormat:
    """One row per sample: the image, its label image of category ids, and the objects as lists of equal length.

    Final file names contain the number of files, which is only known at the end. Units are therefore written to the
    state folder and moved to their final names by `finish`. Every step can be repeated after an interruption.
    """

    def __init__(self, info: ExportInfo, unit_bytes: int = UNIT_BYTES) -> None:
        self._info, self.unit_bytes = info, unit_bytes
        self._features = features(info.vocabulary.names)
        metadata = json.dumps({"info": {"features": self._features}})
        self._schema = _COLUMNS.with_metadata({"huggingface": metadata})

    def write(self, unit: int, samples: Iterable[ExportSample]) -> list[tuple[str, Any]]:
        """Write one pending file per split. The record of a sample is its key."""
        records = []
        with ExitStack() as stack:
            files = {
                split: stack.enter_context(_RowGroupWriter(self._pending(split, unit), self._schema))
                for split in SPLITS
            }
            for sample in samples:
                files[sample.split].add(self._row(sample), len(sample.image) + len(sample.labels))
                records.append((sample.split, sample.key))
        synchronise_all([self._pending(split, unit) for split in SPLITS])
        return records

    def has(self, unit: int, split: str, records: Sequence[Any]) -> bool:
        """Whether the file of the unit exists, under its pending or its final name."""
        return self._pending(split, unit).exists() or any(self._published(split, unit))

    def has_finished(self, records: Records) -> bool:
        """Whether the card exists."""
        return (self._info.root / CARD).exists()

    def finish(self, records: Records) -> None:
        """Move the files to their final names and write the card."""
        counts = {split: count for split in SPLITS if (count := records.count(split))}
        data = self._info.root / "data"
        data.mkdir(exist_ok=True)
        splits, stored = [], 0
        for split, count in counts.items():
            files = self._publish(data, split, records.units)
            stored += sum(file.stat().st_size for file in files)
            splits.append({"name": _NAMES[split], "num_bytes": sum(map(_bytes_of, files)), "num_examples": count})
        write_atomically(self._info.root / CARD, self._card(splits, stored).encode())
        for split in set(SPLITS) - counts.keys():  # which the card no longer names
            _delete_other_files(data, split, [])

    def _publish(self, data: Path, split: str, units: int) -> list[Path]:
        """Move each unit's file to its final name, from pending or from the name of an earlier, smaller export."""
        names = [f"{_NAMES[split]}-{unit:05d}-of-{units:05d}.parquet" for unit in range(units)]
        for unit, name in enumerate(names):
            pending, published = self._pending(split, unit), self._published(split, unit)
            if pending.exists():
                # First, because a repeated call must not find an earlier file besides the new one.
                for path in [path for path in published if path.name != name]:
                    path.unlink()
                source: Path | None = pending
            else:
                source = next(published, None)
            if source is None:
                raise UserError(f"{data / name} is missing; delete {self._info.root} and export again.")
            source.replace(data / name)
        _delete_other_files(data, split, names)
        return [data / name for name in names]

    def _pending(self, split: str, unit: int) -> Path:
        return self._info.root / STATE / f"{split}-{unit:05d}.parquet"

    def _published(self, split: str, unit: int) -> Iterator[Path]:
        """The file of a unit under a final name, of this or of an earlier export."""
        return (self._info.root / "data").glob(f"{_NAMES[split]}-{unit:05d}-of-*.parquet")

    def _row(self, sample: ExportSample) -> dict[str, Any]:
        indices, (width, height) = self._info.class_indices, sample.size
        objects = {
            name: [annotation[name] for annotation in sample.annotations]
            for name in ("id", "category_id", "bbox", "area", "score")
        }
        objects["category"] = [indices[category] for category in objects["category_id"]]
        objects["rle"] = [annotation["segmentation"]["counts"] for annotation in sample.annotations]
        return {
            "key": sample.key,
            "image": {"bytes": sample.image, "path": f"{sample.key}.jpg"},
            "label": {"bytes": sample.labels, "path": f"{sample.key}.png"},
            "width": width,
            "height": height,
            "prompt": sample.record["prompt"],
            "objects": objects,
        }

    def _card(self, splits: list[dict[str, Any]], stored: int) -> str:
        files = [{"split": split["name"], "path": f"data/{split['name']}-*"} for split in splits]
        header = {
            "task_categories": ["image-segmentation", "object-detection"],
            "tags": [] if self._info.real else ["synthetic"],
            "dataset_info": {
                "features": _as_yaml(self._features),
                "splits": splits,
                "download_size": stored,
                "dataset_size": sum(split["num_bytes"] for split in splits),
            },
            "configs": [{"config_name": "default", "data_files": files}],
        }
        text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=110)
        classes = [f"{entry.id} {entry.name}" for entry in self._info.vocabulary.classes]
        lines = [
            f"# {as_text(self._info.title)}",
            f"Recipe `{self._info.fingerprint}`.",
            "`label` is a palette PNG: 0 is background, 255 is ignored, other values are `category_id`. `objects` "
            "contains lists of equal length: `category` is the class (names are in the features), `bbox` is left, top, "
            "width and height in pixels, and `rle` contains the counts of COCO's compressed run lengths: "
            '`pycocotools.mask.decode({"size": [height, width], "counts": rle})` returns the mask.',
            f"`category_id` by class: {as_text(', '.join(classes))}.",
        ]
        return f"---\n{text}---\n\n" + "\n\n".join(lines) + "\n"


def _delete_other_files(data: Path, split: str, names: Collection[str]) -> None:
    """Delete the parquet files of a split that an earlier export wrote under other names."""
    for path in data.iterdir():
        if re.fullmatch(rf"{_NAMES[split]}-\d+-of-\d+\.parquet", path.name) and path.name not in names:
            path.unlink()


def _bytes_of(file: Path) -> int:
    """The uncompressed size of a parquet file, as in a card's `num_bytes`."""
    with file.open("rb") as stream:
        metadata = pq.read_metadata(stream)
    return sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))


class _RowGroupWriter:
    """Writes a parquet file in row groups of bounded size.

    pyarrow receives a stream: it would take a path such as `pets:v1/data` for a URL, and rejects one that is not UTF-8.
    """

    def __init__(self, path: Path, schema: Any) -> None:
        self._stream = path.open("wb")
        self._writer, self._schema = pq.ParquetWriter(self._stream, schema, compression="zstd"), schema
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def __enter__(self) -> "_RowGroupWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._stream:
            if kind is None:
                self._flush()
            self._writer.close()

    def add(self, row: dict[str, Any], size: int) -> None:
        """Add a row of about `size` bytes."""
        self._rows.append(row)
        self._bytes += size
        if self._bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._bytes = [], 0


def features(class_names: Iterable[str]) -> dict[str, Any]:
    """The columns as `datasets` features. `Sequence` works in all versions; `List` requires version 4."""

    def value(dtype: str) -> dict[str, Any]:
        return {"dtype": dtype, "_type": "Value"}

    def sequence(feature: dict[str, Any], **options: int) -> dict[str, Any]:
        return {"feature": feature, **options, "_type": "Sequence"}

    return {
        "key": value("string"),
        "image": {"_type": "Image"},
        "label": {"_type": "Image"},
        "width": value("int32"),
        "height": value("int32"),
        "prompt": value("string"),
        "objects": {
            "id": sequence(value("int64")),
            "category": sequence({"names": list(class_names), "_type": "ClassLabel"}),
            "category_id": sequence(value("int32")),
            "bbox": sequence(sequence(value("float32"), length=4)),
            "area": sequence(value("int64")),
            "score": sequence(value("float32")),
            "rle": sequence(value("string")),
        },
    }


def _as_yaml(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Features in the format of a dataset card."""
    return [{"name": name, **_feature_as_yaml(feature)} for name, feature in columns.items()]


def _feature_as_yaml(feature: dict[str, Any]) -> dict[str, Any]:
    match feature.get("_type"):
        case "Value":
            return {"dtype": feature["dtype"]}
        case "Image":
            return {"dtype": "image"}
        case "ClassLabel":
            return {"dtype": {"class_label": {"names": {str(k): name for k, name in enumerate(feature["names"])}}}}
        case "Sequence":
            element = _feature_as_yaml(feature["feature"])
            plain = element["dtype"] if set(element) == {"dtype"} else element
            return {"sequence": plain} | ({"length": feature["length"]} if "length" in feature else {})
        case _:
            return {"struct": _as_yaml(feature)}
