"""An export from start to end: which shards, read one at a time, written unit by unit, resumed after a kill."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

from factory.config.plan import Plan
from factory.dataset.encode import EncodedSample
from factory.dataset.masks import decode_label_png, decode_rle
from factory.dataset.receipts import Blob, Receipt, committed
from factory.dataset.state import receipts, recipe_of
from factory.dataset.storage import Store, is_remote
from factory.dataset.stream import annotation_of, readable
from factory.dataset.tar import unpack
from factory.errors import UserError
from factory.export.coco import CocoFormat
from factory.export.folder import Folder
from factory.export.hf import HuggingFaceFormat
from factory.export.interface import SPLITS, ExportSample, Format, Subject, Unit, split_of
from factory.export.voc import VocFormat
from factory.export.yolo import YoloFormat
from factory.files.decode import open_image

FORMATS: dict[str, Callable[[Subject, bool], Format]] = {
    "coco": CocoFormat,
    "voc": lambda subject, polygons: VocFormat(subject),
    "yolo": lambda subject, polygons: YoloFormat(subject),
    "hf": lambda subject, polygons: HuggingFaceFormat(subject),
}
_LAYOUT = 1
"""Goes up when an export that was begun before cannot be gone on with."""


@dataclass(frozen=True)
class Options:
    """What an export is asked for; `val` is the share of the validation split. All of it changes what is written."""

    format: str
    val: float = 0.05
    polygons: bool = False


@dataclass(frozen=True)
class ExportSummary:
    """What an export holds. `complete` tells whether it is the whole of the planned dataset."""

    to: str
    format: str
    train: int
    val: int
    shards: int
    shards_planned: int
    complete: bool


class Export:
    """An export that is checked and ready to run; nothing is written before `run`.

    `samples` counts those to be exported. UserError for bad options, a folder that holds something else, no dataset,
    and for a dataset that is not finished unless `partial` allows it.
    """

    def __init__(self, store: Store, to: Path, options: Options, partial: bool = False) -> None:
        self._store, self._to, self._options = store, to, options
        _check_options(store, to, options)
        recipe = recipe_of(store)
        self._plan = Plan(recipe)
        numbers = sorted(number for number in committed(store) if number < len(self._plan))
        _check_state(store, len(numbers), len(self._plan), partial)
        fingerprint = recipe.fingerprint()
        subject = Subject(to, recipe.vocabulary(), fingerprint, real=recipe.real is not None)
        self._ids = subject.places.keys()
        self._format = FORMATS[options.format](subject, options.polygons)
        purpose = {"set": fingerprint[:16], **asdict(options), "layout": _LAYOUT}
        self._folder = Folder(to, purpose)
        self._folder.check()
        self._units = cut(receipts(store, numbers), self._format.unit_bytes)
        self.samples = sum(unit.samples for unit in self._units)

    def run(self, watch: Callable[[int], None] = lambda done: None) -> ExportSummary:
        """Write what is missing; `watch` is told how many samples are there."""
        done = 0
        with self._folder.claimed():
            for unit in self._units:
                if not self._folder.has(unit):
                    self._folder.begin(unit)
                    samples = _counted(self._read(unit), done, watch)
                    self._folder.commit(unit, self._format.write(unit.number, samples))
                else:
                    watch(done + unit.samples)
                done += unit.samples
            self._folder.forget_beyond(len(self._units))
            records = self._folder.records(len(self._units))
            if not self._folder.finished(self._units):
                self._format.finish(records)
                self._folder.finish(self._units)
            counts = {split: records.count(split) for split in SPLITS}
        shards = sum(len(unit.tars) for unit in self._units)
        whole = shards == len(self._plan)
        name = self._options.format
        return ExportSummary(
            str(self._to), name, **counts, shards=shards, shards_planned=len(self._plan), complete=whole
        )

    def _read(self, unit: Unit) -> Iterator[ExportSample]:
        for tar in unit.tars:
            yield from read_shard(self._store, tar, self._options.val, self._ids)


def read_shard(store: Store, tar: Blob, val: float, ids: Collection[int]) -> Iterator[ExportSample]:
    """The samples of a shard, its bytes checked against its receipt, and each sample in all that formats build upon.

    `ids` are the category ids of the vocabulary. UserError where anything is not as it should be.
    """
    data = store.get(tar.name)
    if data is None or hashlib.sha256(data).hexdigest() != tar.sha256:
        raise UserError(
            f"{tar.name} of {store.address} is {'gone' if data is None else 'damaged'}; repair the dataset with "
            f"`factory verify {store.address} --repair`, then run the same export again: it goes on."
        )
    with readable(store, tar.name):
        for sample in unpack(data):
            yield _export_sample(sample, split_of(sample.key, val), ids)


def _export_sample(sample: EncodedSample, split: str, ids: Collection[int]) -> ExportSample:
    """ValueError where a member is missing, broken, or of another size; of the image only the header is read."""
    if lacking := {"jpg", "json", "seg.png"} - sample.members.keys():
        raise ValueError(f"sample {sample.key} has no {', '.join(sorted(lacking))}")
    try:
        row = annotation_of(sample)
        size = (row["image"]["width"], row["image"]["height"])
        image, labels = open_image(sample.members["jpg"], "JPEG"), decode_label_png(sample.members["seg.png"])
        if image.size != size or labels.shape[::-1] != size:
            raise ValueError(f"its image is {image.size}, its labels {labels.shape[::-1]}, its annotation {size}")
        masks = [decode_rle(annotation["segmentation"]) for annotation in row["annotations"]]
        for annotation, mask in zip(row["annotations"], masks, strict=True):
            if annotation["category_id"] not in ids or annotation["area"] != mask.sum():
                raise ValueError(f"object {annotation['id']} is of no class of the recipe, or its area is wrong")
    except ValueError as error:
        raise ValueError(f"sample {sample.key}: {error}") from error
    return ExportSample(sample.key, split, sample.members["jpg"], sample.members["seg.png"], row, tuple(masks))


def cut(done: Iterable[Receipt], unit_bytes: int) -> list[Unit]:
    """Shards in their order, put together while they stay within `unit_bytes`."""
    units: list[Unit] = []
    held = 0
    for receipt in done:
        if units and held + receipt.tar.bytes <= unit_bytes:
            last = units.pop()
            units.append(Unit(last.number, (*last.tars, receipt.tar), last.samples + receipt.accepted))
            held += receipt.tar.bytes
        else:
            units.append(Unit(len(units), (receipt.tar,), receipt.accepted))
            held = receipt.tar.bytes
    return units


def default_target(address: str, name: str) -> Path:
    """A folder beside the dataset, in the working directory for one elsewhere: out/ -> out-coco."""
    if is_remote(address):
        url = urlparse(address)
        return Path(f"{PurePosixPath(url.path).name or url.netloc}-{name}")
    place = Path(address.removeprefix("file://"))
    place = place if place.name not in ("", "..") else place.resolve()
    return place.with_name(f"{place.name}-{name}")


def _counted(samples: Iterator[ExportSample], before: int, watch: Callable[[int], None]) -> Iterator[ExportSample]:
    for count, sample in enumerate(samples, before + 1):
        yield sample
        watch(count)


def _check_options(store: Store, to: Path, options: Options) -> None:
    if options.format not in FORMATS:
        raise UserError(f"--format is one of {', '.join(FORMATS)}; got {options.format!r}.")
    if not 0 <= options.val < 1:
        raise UserError(f"--val is the share of samples for validation, 0 or more and less than 1; got {options.val}.")
    if options.polygons and options.format != "coco":
        raise UserError(
            f"--polygons goes with --format coco, got {options.format}; leave it out (yolo always has polygons)."
        )
    if is_remote(str(to)):
        raise UserError(f"an export goes to a folder of this machine, got --to {to}; copy it from there.")
    if store.folder is not None and to.resolve().is_relative_to(store.folder.resolve()):
        raise UserError(f"--to {to} lies inside the dataset {store.address}; give a folder outside of it.")


def _check_state(store: Store, done: int, planned: int, partial: bool) -> None:
    if not done:
        raise UserError(f"{store.address} holds no finished shard yet; make one with `factory generate`.")
    if done < planned and not partial:
        raise UserError(
            f"{store.address} is not finished: {done} of {planned} shards are there. Finish it with `factory "
            f"generate`, or add --partial to export these; the same command adds the others later."
        )
