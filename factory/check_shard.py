"""Check a set as its readers would, from the bytes up; and mend it by making again what is damaged."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image as Pictures

from factory.dataset import recipe_of
from factory.manifest import manifest_of
from factory.masks import IGNORE, decode_label_png, decode_rle, mask_to_xywh
from factory.plan import Plan, PlannedShard
from factory.receipts import Blob, Receipt, committed, manifest_name, missing, read_receipt, receipt_name, tar_name
from factory.recipe import Recipe
from factory.recipe_parts import OracleRecipe
from factory.shards.encode import ORACLE_SUFFIXES, SUFFIXES, EncodedSample
from factory.shards.tar import unpack
from factory.store import Store
from factory.vocabulary import Vocabulary

_TOLD = 5
"""Problems told of one shard; the rest are counted."""


@dataclass(frozen=True)
class Checked:
    """What the check of one shard came to. `images` are digests of its jpg members."""

    number: int
    problems: list[str]
    samples: int = 0
    images: dict[bytes, str] = field(default_factory=dict)
    only_manifest: bool = False


@dataclass
class Report:
    """What the check of a set came to; `damaged` maps a shard to its problems."""

    shards: int = 0
    samples: int = 0
    missing: list[int] = field(default_factory=list)
    damaged: dict[int, list[str]] = field(default_factory=dict)
    only_manifest: list[int] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether all that is there is as it should be; a set that is not finished can be sound."""
        return not self.damaged


def verify(store: Store, watch: Callable[[int, int], None] = lambda done, all: None) -> Report:
    """Check every shard that has a receipt. `watch` is told how many of them are checked."""
    recipe = recipe_of(store)
    plan, done = Plan(recipe), committed(store)
    known = sorted(number for number in done if number < len(plan))
    report = Report(missing=missing(plan, done), strays=_strays(store, done, len(plan)))
    seen: dict[bytes, str] = {}
    with ThreadPoolExecutor(4) as pool:
        for checked in pool.map(lambda number: check_shard(store, recipe, plan.shard(number)), known):
            problems = list(checked.problems)
            for digest, key in checked.images.items():
                if seen.setdefault(digest, key) != key:
                    problems.append(f"{key} has the image of {seen[digest]}")
            report.shards += 1
            report.samples += checked.samples
            if problems:
                report.damaged[checked.number] = problems
            if checked.only_manifest and problems == checked.problems:
                report.only_manifest.append(checked.number)
            watch(report.shards, len(known))
    return report


def mend(store: Store, report: Report) -> list[int]:
    """Write lost manifests anew from their shards, and take out what else is damaged; returns the shards to make again.

    The receipt goes first, so that a repair that is cut off leaves a shard to be made and not one that looks sound.
    """
    again = []
    for number in report.damaged:
        if number in report.only_manifest:
            store.delete(manifest_name(number))
            data = store.get(tar_name(number))
            assert data is not None
            store.create(manifest_name(number), manifest_of(unpack(data), number))
        else:
            for name in (receipt_name(number), manifest_name(number), tar_name(number)):
                store.delete(name)
            again.append(number)
    return again


def check_shard(store: Store, recipe: Recipe, planned: PlannedShard) -> Checked:
    """One shard against its receipt, its plan and itself."""
    try:
        receipt = read_receipt(store, planned.number)
    except ValueError as error:
        return Checked(planned.number, [str(error)])
    if receipt is None:
        return Checked(planned.number, ["the receipt is gone"])
    problems = [] if receipt.plan == planned.digest else ["the receipt is of another plan"]
    data, told = _blob(store, receipt.tar)
    if data is None:
        return Checked(planned.number, problems + told)
    problems += told
    try:
        samples = list(unpack(data))
    except ValueError as error:
        return Checked(planned.number, [*problems, str(error)])
    problems += list(_check_keys(samples, planned, receipt))
    for sample in samples:
        problems += [f"{sample.key}: {told}" for told in check_sample(sample, recipe)]
    manifest_problems = _blob(store, receipt.manifest)[1]
    if not problems and hashlib.sha256(manifest_of(samples, planned.number)).hexdigest() != receipt.manifest.sha256:
        problems.append("the manifest does not follow from the samples")
    images = {hashlib.sha256(s.members["jpg"]).digest()[:16]: s.key for s in samples if "jpg" in s.members}
    everything = problems[:_TOLD] + ([f"and {len(problems) - _TOLD} more"] if len(problems) > _TOLD else [])
    return Checked(
        planned.number, everything + manifest_problems, len(samples), images, not problems and bool(manifest_problems)
    )


def check_sample(sample: EncodedSample, recipe: Recipe) -> Iterator[str]:
    """What a reader of this sample would stumble over."""
    if tuple(sample.members) != (SUFFIXES if recipe.oracle is None else ORACLE_SUFFIXES):
        yield f"its members are {', '.join(sample.members)}"
        return
    try:
        row = json.loads(sample.members["json"])
        labels = decode_label_png(sample.members["seg.png"])
        with Pictures.open(io.BytesIO(sample.members["jpg"])) as picture:
            picture.load()
            size = (row["image"]["width"], row["image"]["height"])
            if picture.size != size or labels.shape[::-1] != size:
                yield f"image {picture.size}, labels {labels.shape[::-1]} and annotation {size} differ in size"
                return
        if row["key"] != sample.key:
            yield f"the annotation is of {row['key']}"
        yield from _check_annotations(row, labels, recipe.vocabulary())
        found = {annotation["category_name"] for annotation in row["annotations"]}
        if recipe.oracle is not None:
            yield from _check_oracle(sample, row, found, recipe.oracle)
        elif set(row["classes"]) != found:
            yield "the objects are not those of the prompt"
    except (ValueError, KeyError, TypeError, OSError) as error:
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
    latent = np.load(io.BytesIO(sample.members["latent.npy"]), allow_pickle=False)
    if latent.dtype != np.float16 or latent.ndim != 3 or not np.isfinite(latent).all():
        yield f"the latent is {latent.dtype} {latent.shape}, or not finite"


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


def _strays(store: Store, done: set[int], shards: int) -> list[str]:
    """Files that belong to no receipt: of shards that are being made or were cut off before their receipt."""
    wanted = {name for number in done if number < shards for name in (tar_name(number), manifest_name(number))}
    return [name for folder in ("train", "manifest") for name in store.list(folder) if name not in wanted]
