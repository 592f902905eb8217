"""Checks a shard against its receipt and plan, and everything that readers rely on."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from factory.config.plan import PlannedShard
from factory.config.recipe import Recipe
from factory.config.sections import OracleRecipe
from factory.config.vocabulary import Vocabulary
from factory.dataset.duplicates import DIGEST_BYTES
from factory.dataset.encode import ORACLE_SUFFIXES, SUFFIXES, EncodedSample
from factory.dataset.manifest import manifest_table, read_manifest
from factory.dataset.masks import IGNORE, decode_label_png, decode_rle, mask_to_xywh
from factory.dataset.receipts import Blob, CorruptReceiptError, Receipt, read_receipt, receipt_name
from factory.dataset.records import annotation_id
from factory.dataset.shards import annotation_of
from factory.dataset.storage import Store
from factory.dataset.storage_errors import UnreadableError
from factory.dataset.tar import unpack
from factory.files.decode import decode_array, load_image

_MAX_SHOWN = 5
"""Problems reported per shard; the rest are only counted."""
_UNREADABLE = "cannot be read: its disk returns an error"


@dataclass(frozen=True)
class ShardCheck:
    """The result of checking a shard.

    `images` are the digests of its jpg members with their sample keys; `only_manifest` means that only the manifest is
    damaged. `unreadable` means that the disk returned an error for a file.
    """

    number: int
    problems: list[str]
    samples: int = 0
    images: list[tuple[bytes, str]] = field(default_factory=list)
    only_manifest: bool = False
    unreadable: bool = False


def check_shard(store: Store, recipe: Recipe, planned: PlannedShard) -> ShardCheck:
    """Check a shard against its receipt and its plan."""
    try:
        receipt = read_receipt(store, planned.number)
    except CorruptReceiptError as error:
        return ShardCheck(planned.number, [str(error)])
    except UnreadableError:
        return ShardCheck(planned.number, [f"{receipt_name(planned.number)} {_UNREADABLE}"], unreadable=True)
    if receipt is None:
        return ShardCheck(planned.number, ["the receipt is missing"])
    problems = []
    if receipt.plan != planned.digest:
        other = "plan" if receipt.recipe == recipe.fingerprint() else "recipe"
        problems.append(f"the receipt belongs to a different {other}")
    tar = _read(store, receipt.tar)
    problems += tar.problems
    if tar.data is None:
        return ShardCheck(planned.number, problems, unreadable=tar.unreadable)
    try:
        samples = list(unpack(tar.data))
    except ValueError as error:
        return ShardCheck(planned.number, [*problems, str(error)])
    problems += list(_check_keys(samples, planned, receipt))
    for sample in samples:
        problems += [f"{sample.key}: {problem}" for problem in check_sample(sample, recipe)]
    images = [(hashlib.sha256(s.members["jpg"]).digest()[:DIGEST_BYTES], s.key) for s in samples if "jpg" in s.members]
    rows: list[dict[str, Any]] = []
    if not problems:
        try:
            rows = manifest_table(samples, planned.number, planned.format).to_pylist()
        except ValueError as error:
            problems.append(str(error))
    if problems:
        rest = [f"and {len(problems) - _MAX_SHOWN} more"] if len(problems) > _MAX_SHOWN else []
        return ShardCheck(planned.number, problems[:_MAX_SHOWN] + rest, len(samples), images)
    problems = list(_check_manifest(store, receipt, rows))
    return ShardCheck(planned.number, problems, len(samples), images, only_manifest=bool(problems))


def check_sample(sample: EncodedSample, recipe: Recipe) -> Iterator[str]:
    """Yield the problems that a reader of this sample would encounter."""
    if tuple(sample.members) != (SUFFIXES if recipe.oracle is None else ORACLE_SUFFIXES):
        yield f"its members are {', '.join(sample.members)}"
        return
    try:
        record = annotation_of(sample)
        labels, image = decode_label_png(sample.members["seg.png"]), load_image(sample.members["jpg"], "JPEG")
        size = (record["image"]["width"], record["image"]["height"])
        if image.size != size or labels.shape[::-1] != size:
            yield f"image {image.size}, labels {labels.shape[::-1]} and annotation {size} differ in size"
            return
        yield from _check_annotations(record, labels, recipe.vocabulary())
        annotated = {annotation["category_name"] for annotation in record["annotations"]}
        if recipe.oracle is not None:
            yield from _check_oracle(sample, record, annotated, recipe.oracle)
        elif set(record["classes"]) != annotated:
            yield "the objects do not match the prompt"
    except (ValueError, KeyError, TypeError) as error:
        yield f"cannot be read: {type(error).__name__} {error}"


def _check_annotations(record: dict[str, Any], labels: Any, vocabulary: Vocabulary) -> Iterator[str]:
    expected = np.zeros_like(labels)
    for number, annotation in enumerate(record["annotations"], 1):
        name, category = annotation["category_name"], annotation["category_id"]
        if vocabulary.resolve(name).id != category:
            yield f"{name} has the id {category}"
        if annotation["id"] != annotation_id(record["image"]["id"], number):
            yield f"its object {number} has the id {annotation['id']}"
        mask = decode_rle(annotation["segmentation"])
        if annotation["area"] != np.count_nonzero(mask) or annotation["bbox"] != mask_to_xywh(mask):
            yield f"area or box of {name} does not match its mask"
        if (expected[mask] != 0).any():
            yield f"the mask of {name} overlaps another"
        expected[mask] = category
    if not ((labels == expected) | ((labels == IGNORE) & (expected == 0))).all():
        yield "the label image does not match the run lengths"


def _check_oracle(
    sample: EncodedSample, record: dict[str, Any], annotated: set[str], oracle: OracleRecipe
) -> Iterator[str]:
    if not annotated or not annotated <= set(record["classes"]):
        yield "the objects do not match the prompt"
    if leaked := set(record["classes"]) - set(oracle.seen):
        yield f"it names {', '.join(sorted(leaked))}, which the split defines as unseen"
    if not np.isfinite(decode_array(sample.members["latent.npy"])).all():
        yield "the latent contains values that are not finite"


def _check_manifest(store: Store, receipt: Receipt, expected: list[dict[str, Any]]) -> Iterator[str]:
    """Check that the manifest matches the receipt's digest and has the `expected` rows.

    Rows are compared, not bytes: a parquet file contains the version of the library that wrote it.
    """
    manifest = _read(store, receipt.manifest)
    yield from manifest.problems
    if manifest.data is None or manifest.problems:
        return
    try:
        if read_manifest(manifest.data) != expected:
            yield "the manifest does not match the samples"
    except ValueError as error:
        yield f"{receipt.manifest.name}: {error}"


def _check_keys(samples: list[EncodedSample], planned: PlannedShard, receipt: Receipt) -> Iterator[str]:
    keys, short = [sample.key for sample in samples], set(receipt.short)
    expected = [sample.key for sample in planned.samples if sample.index not in short]
    if keys != expected:
        missing, extra = sorted(set(expected) - set(keys)), sorted(set(keys) - set(expected))
        yield f"missing samples: {', '.join(missing[:3]) or 'none'}; extra: {', '.join(extra[:3]) or 'none'}"
    if receipt.accepted != len(keys) or receipt.planned != len(planned.samples):
        yield f"the receipt counts {receipt.accepted} of {receipt.planned} samples, but the tar contains {len(keys)}"


class _Read(NamedTuple):
    """The content of a file, None if it is missing or `unreadable`, and its differences from the receipt."""

    data: bytes | None
    problems: list[str]
    unreadable: bool = False


def _read(store: Store, blob: Blob) -> _Read:
    try:
        data = store.get(blob.name)
    except UnreadableError:
        return _Read(None, [f"{blob.name} {_UNREADABLE}"], unreadable=True)
    if data is None:
        return _Read(None, [f"{blob.name} is missing"])
    if hashlib.sha256(data).hexdigest() != blob.sha256:
        return _Read(data, [f"{blob.name} ({len(data)} bytes) does not match the digest in the receipt"])
    return _Read(data, [])
