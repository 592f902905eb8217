"""Runs an export: reads shards one at a time, writes them in units, and resumes after an interruption."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from factory.config.plan import Plan
from factory.dataset.continuation import continuing_command, without_samples
from factory.dataset.encode import EncodedSample
from factory.dataset.masks import decode_label_png, decode_rle, mask_to_xywh
from factory.dataset.receipts import Blob, Receipt, check_same_recipe, finished_shards
from factory.dataset.records import annotation_id
from factory.dataset.shards import annotation_of, readable
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import recipe_of
from factory.dataset.tar import unpack
from factory.dataset.totals import read_receipts
from factory.errors import UserError, command
from factory.export.coco import CocoFormat
from factory.export.folder import ExportFolder
from factory.export.hf import HuggingFaceFormat
from factory.export.interface import SPLITS, ExportInfo, ExportSample, Format, Unit, split_of
from factory.export.voc import VocFormat
from factory.export.yolo import YoloFormat
from factory.files.decode import open_image

FORMATS: dict[str, Callable[[ExportInfo, bool], Format]] = {
    "coco": CocoFormat,
    "voc": lambda info, polygons: VocFormat(info),
    "yolo": lambda info, polygons: YoloFormat(info),
    "hf": lambda info, polygons: HuggingFaceFormat(info),
}
_LAYOUT = 1
"""Version of the layout; incremented when older unfinished exports can no longer be resumed."""


@dataclass(frozen=True)
class Options:
    """Options of an export; all of them affect what is written.

    Attributes:
        format: One of FORMATS: `coco`, `voc`, `yolo` or `hf`.
        val: Share of the validation split, at least 0 and below 1.
        polygons: Write polygons instead of run lengths (`coco` only).
    """

    format: str
    val: float = 0.05
    polygons: bool = False


@dataclass(frozen=True)
class ExportSummary:
    """The result of an export.

    Attributes:
        out: The folder.
        format: The format.
        train: Samples of the training split.
        val: Samples of the validation split.
        shards: Exported shards.
        shards_planned: Shards of the complete dataset.
        complete: Whether the export covers the complete dataset.
    """

    out: str
    format: str
    train: int
    val: int
    shards: int
    shards_planned: int
    complete: bool


class Export:
    """A validated export that is ready to run; nothing is written before `run`.

    `samples` is the number of samples to export. Raises UserError for invalid options, a folder with other content, a
    missing dataset, and an unfinished dataset unless `partial` is set.
    """

    def __init__(self, store: Store, to: Path, options: Options, partial: bool = False) -> None:
        self._store, self._to, self._options = store, to, options
        _check_options(store, to, options)
        recipe = recipe_of(store)
        self._plan = Plan(recipe)
        numbers = finished_shards(store, self._plan)
        _check_state(store, len(numbers), len(self._plan), partial)
        fingerprint = recipe.fingerprint()
        check_same_recipe(store, fingerprint, numbers)
        info = ExportInfo(to, recipe.vocabulary(), fingerprint, real=recipe.real is not None)
        self._ids = info.class_indices.keys()
        self._format = FORMATS[options.format](info, options.polygons)
        purpose = {"dataset": fingerprint[:16], **asdict(options), "layout": _LAYOUT}
        self._folder = ExportFolder(to, purpose)
        self._folder.check()
        self._units = group_shards(read_receipts(store, numbers, fingerprint), self._format.unit_bytes)
        self.samples = sum(unit.samples for unit in self._units)
        if not self.samples:
            raise without_samples(store, has_shards=True)

    def run(self, watch: Callable[[int], None] = lambda done: None) -> ExportSummary:
        """Write the missing units; `watch` is called with the number of exported samples, first with those before."""
        with self._folder.claimed():
            todo = [unit for unit in self._units if not self._folder.has(unit, self._format)]
            done = self.samples - sum(unit.samples for unit in todo)
            watch(done)
            for unit in todo:
                self._folder.begin(unit)
                samples = _counted(self._read(unit), done, watch)
                self._folder.commit(unit, self._format.write(unit.number, samples))
                done += unit.samples
            self._folder.forget_beyond(len(self._units))
            records = self._folder.records(len(self._units))
            if not (self._folder.finished(self._units) and self._format.has_finished(records)):
                self._format.finish(records)
                self._folder.finish(self._units)
            counts = {split: records.count(split) for split in SPLITS}
        shards = sum(len(unit.tars) for unit in self._units)
        name = self._options.format
        return ExportSummary(
            str(self._to),
            name,
            **counts,
            shards=shards,
            shards_planned=len(self._plan),
            complete=shards == len(self._plan),
        )

    def _read(self, unit: Unit) -> Iterator[ExportSample]:
        for tar in unit.tars:
            yield from read_verified(self._store, tar, self._options.val, self._ids)


def read_verified(store: Store, tar: Blob, val: float, ids: Collection[int]) -> Iterator[ExportSample]:
    """Read the samples of a shard after checking its digest; each sample is validated for all formats.

    `ids` are the category ids of the vocabulary. Raises UserError if the shard is damaged.
    """
    data = store.get(tar.name)
    if data is None or hashlib.sha256(data).hexdigest() != tar.sha256:
        raise UserError(
            f"{tar.name} of {store.address} is {'missing' if data is None else 'damaged'}; repair the dataset with "
            f"{command('verify', store.address, '--repair')}, then rerun the same export to resume."
        )
    with readable(store, tar.name):
        for sample in unpack(data):
            yield _export_sample(sample, split_of(sample.key, val), ids)


def _export_sample(sample: EncodedSample, split: str, ids: Collection[int]) -> ExportSample:
    """Validate and decode a sample; raises ValueError if it is invalid. Only the header of the image is read."""
    if missing := {"jpg", "json", "seg.png"} - sample.members.keys():
        raise ValueError(f"sample {sample.key} has no {', '.join(sorted(missing))}")
    try:
        record = annotation_of(sample)
        size = (record["image"]["width"], record["image"]["height"])
        image, labels = open_image(sample.members["jpg"], "JPEG"), decode_label_png(sample.members["seg.png"])
        if image.size != size or labels.shape[::-1] != size:
            raise ValueError(f"image {image.size}, labels {labels.shape[::-1]} and annotation {size} differ in size")
        masks = [decode_rle(annotation["segmentation"]) for annotation in record["annotations"]]
        for number, (annotation, mask) in enumerate(zip(record["annotations"], masks, strict=True), 1):
            measures = (annotation_id(int(sample.key), number), np.count_nonzero(mask), mask_to_xywh(mask))
            if annotation["category_id"] not in ids or measures != tuple(annotation[k] for k in ("id", "area", "bbox")):
                raise ValueError(f"object {number} has another id, area or box, or a class that is not in the recipe")
    except ValueError as error:
        raise ValueError(f"sample {sample.key}: {error}") from error
    return ExportSample(sample.key, split, sample.members["jpg"], sample.members["seg.png"], record, tuple(masks))


def group_shards(done: Iterable[Receipt], unit_bytes: int) -> list[Unit]:
    """Group consecutive shards into units of up to `unit_bytes`."""
    units: list[Unit] = []
    size = 0
    for receipt in done:
        if units and size + receipt.tar.bytes <= unit_bytes:
            last = units.pop()
            units.append(Unit(last.number, (*last.tars, receipt.tar), last.samples + receipt.accepted))
            size += receipt.tar.bytes
        else:
            units.append(Unit(len(units), (receipt.tar,), receipt.accepted))
            size = receipt.tar.bytes
    return units


def _counted(samples: Iterator[ExportSample], before: int, watch: Callable[[int], None]) -> Iterator[ExportSample]:
    for count, sample in enumerate(samples, before + 1):
        yield sample
        watch(count)


def _check_options(store: Store, to: Path, options: Options) -> None:
    if options.format not in FORMATS:
        raise UserError(f"--format must be one of {', '.join(FORMATS)}; got {options.format!r}.")
    if not 0 <= options.val < 1:
        raise UserError(f"--val must be a share of at least 0 and less than 1; got {options.val}.")
    if options.polygons and options.format != "coco":
        raise UserError(
            f"--polygons requires --format coco, got {options.format}; remove it (yolo always uses polygons)."
        )
    # Not `Path.resolve`, which fails with a RuntimeError at a link to itself.
    if store.folder is not None and Path(os.path.realpath(to)).is_relative_to(os.path.realpath(store.folder)):
        raise UserError(f"--out {to} is inside the dataset {store.address}; give a folder outside of it.")


def _check_state(store: Store, done: int, planned: int, partial: bool) -> None:
    if not done:
        raise UserError(f"{store.address} has no finished shards yet; generate some with {continuing_command(store)}.")
    if done < planned and not partial:
        raise UserError(
            f"{store.address} is not finished: it has {done} of {planned} shards. Finish it with "
            f"{continuing_command(store)}, or add --partial to export these; rerun the same command later to add the "
            f"others."
        )
