"""The check of one shard: against its receipt, its plan and itself, as far as any reader builds upon it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from factory.config.plan import PlannedShard
from factory.config.recipe import Recipe
from factory.config.sections import OracleRecipe
from factory.config.vocabulary import Vocabulary
from factory.dataset.encode import ORACLE_SUFFIXES, SUFFIXES, EncodedSample
from factory.dataset.manifest import manifest_table, read_manifest
from factory.dataset.masks import IGNORE, decode_label_png, decode_rle, mask_to_xywh
from factory.dataset.receipts import Blob, Receipt, read_receipt
from factory.dataset.storage import Store
from factory.dataset.stream import annotation_of
from factory.dataset.tar import unpack
from factory.files.decode import decode_array, load_image

_SHOWN = 5
"""Problems shown of one shard; the rest are counted."""


@dataclass(frozen=True)
class Checked:
    """What the check of one shard came to.

    `images` are digests of its jpg members; `only_manifest` says that all but the manifest is sound.
    """

    number: int
    problems: list[str]
    samples: int = 0
    images: dict[bytes, str] = field(default_factory=dict)
    only_manifest: bool = False


def check_shard(store: Store, recipe: Recipe, planned: PlannedShard) -> Checked:
    """One shard against its receipt, its plan and itself."""
    try:
        receipt = read_receipt(store, planned.number)
    except ValueError as error:
        return Checked(planned.number, [str(error)])
    if receipt is None:
        return Checked(planned.number, ["the receipt is gone"])
    problems = [] if receipt.plan == planned.digest else ["the receipt is of another plan"]
    data, damage = _blob(store, receipt.tar)
    problems += damage
    if data is None:
        return Checked(planned.number, problems)
    try:
        samples = list(unpack(data))
    except ValueError as error:
        return Checked(planned.number, [*problems, str(error)])
    problems += list(_check_keys(samples, planned, receipt))
    for sample in samples:
        problems += [f"{sample.key}: {problem}" for problem in check_sample(sample, recipe)]
    images = {hashlib.sha256(s.members["jpg"]).digest()[:16]: s.key for s in samples if "jpg" in s.members}
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        return Checked(planned.number, problems[:_SHOWN] + more, len(samples), images)
    problems = list(_check_manifest(store, receipt, samples, planned))
    return Checked(planned.number, problems, len(samples), images, only_manifest=bool(problems))


def check_sample(sample: EncodedSample, recipe: Recipe) -> Iterator[str]:
    """What a reader of this sample would stumble over."""
    if tuple(sample.members) != (SUFFIXES if recipe.oracle is None else ORACLE_SUFFIXES):
        yield f"its members are {', '.join(sample.members)}"
        return
    try:
        row = annotation_of(sample)
        labels, picture = decode_label_png(sample.members["seg.png"]), load_image(sample.members["jpg"], "JPEG")
        size = (row["image"]["width"], row["image"]["height"])
        if picture.size != size or labels.shape[::-1] != size:
            yield f"image {picture.size}, labels {labels.shape[::-1]} and annotation {size} differ in size"
            return
        yield from _check_annotations(row, labels, recipe.vocabulary())
        found = {annotation["category_name"] for annotation in row["annotations"]}
        if recipe.oracle is not None:
            yield from _check_oracle(sample, row, found, recipe.oracle)
        elif set(row["classes"]) != found:
            yield "the objects are not those of the prompt"
    except (ValueError, KeyError, TypeError) as error:
        yield f"cannot be read: {type(error).__name__} {error}"


def _check_annotations(row: dict[str, Any], labels: Any, vocabulary: Vocabulary) -> Iterator[str]:
    expected = np.zeros_like(labels)
    for annotation in row["annotations"]:
        name, number = annotation["category_name"], annotation["category_id"]
        if vocabulary.resolve(name).id != number:
            yield f"{name} has the id {number}"
        mask = decode_rle(annotation["segmentation"])
        if mask.shape != labels.shape:
            yield f"the mask of {name} is {mask.shape}"
            continue
        if annotation["area"] != np.count_nonzero(mask) or annotation["bbox"] != mask_to_xywh(mask):
            yield f"area or box of {name} are not those of its mask"
        if (expected[mask] != 0).any():
            yield f"the mask of {name} overlaps another"
        expected[mask] = number
    if not ((labels == expected) | ((labels == IGNORE) & (expected == 0))).all():
        yield "the label picture is not that of the run lengths"


def _check_oracle(sample: EncodedSample, row: dict[str, Any], found: set[str], oracle: OracleRecipe) -> Iterator[str]:
    if not found or not found <= set(row["classes"]):
        yield "the objects are not some of those of the prompt"
    if leaked := set(row["classes"]) - set(oracle.seen):
        yield f"it names {', '.join(sorted(leaked))}, which the split leaves unseen"
    if not np.isfinite(decode_array(sample.members["latent.npy"])).all():
        yield "the latent is not finite"


def _check_manifest(
    store: Store, receipt: Receipt, samples: list[EncodedSample], planned: PlannedShard
) -> Iterator[str]:
    """The stored file is that of the receipt, and its rows are those that follow from the samples.

    Rows are compared and not bytes: a parquet file names the version of the library that wrote it.
    """
    data, damage = _blob(store, receipt.manifest)
    yield from damage
    if data is None or damage:
        return
    try:
        if read_manifest(data) != manifest_table(samples, planned.number, planned.format).to_pylist():
            yield "the manifest does not follow from the samples"
    except (ValueError, KeyError, TypeError) as error:
        yield f"{receipt.manifest.name}: {error}"


def _check_keys(samples: list[EncodedSample], planned: PlannedShard, receipt: Receipt) -> Iterator[str]:
    keys = [sample.key for sample in samples]
    expected = [sample.key for sample in planned.samples if sample.index not in receipt.short]
    if keys != expected:
        lost, extra = sorted(set(expected) - set(keys)), sorted(set(keys) - set(expected))
        yield f"samples lost: {', '.join(lost[:3]) or 'none'}; too many: {', '.join(extra[:3]) or 'none or twice'}"
    if receipt.accepted != len(keys) or receipt.planned != len(planned.samples):
        yield f"the receipt counts {receipt.accepted} of {receipt.planned} samples, there are {len(keys)}"


def _blob(store: Store, blob: Blob) -> tuple[bytes | None, list[str]]:
    data = store.get(blob.name)
    if data is None:
        return None, [f"{blob.name} is gone"]
    if hashlib.sha256(data).hexdigest() != blob.sha256:
        return data, [f"{blob.name} has {len(data)} bytes that are not those of the receipt"]
    return data, []
