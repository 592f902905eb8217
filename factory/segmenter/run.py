"""Train a segmenter from options."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from factory.config.splits import seen_classes
from factory.config.vocabulary import Vocabulary
from factory.dataset.storage import Store, absolute
from factory.errors import UserError
from factory.files.paths import expanded, local_path
from factory.hf_logging import quiet_model_libraries
from factory.segmenter.classes import ARCHITECTURES, STORED, common_vocabulary, is_dataset, training_vocabulary
from factory.training.devices import check_device_name, chosen_device
from factory.training.options import CHECKPOINT, TrainOptions, check_run_folder, check_start

if TYPE_CHECKING:
    from factory.segmenter.data import LabelledSource

_log = logging.getLogger(__name__)

_IMAGE_SET = "train"
"""The default image set of a PASCAL VOC folder."""


@dataclass(frozen=True)
class SegmenterTraining:
    """Options of a training run. `real_classes` is "all" or "seen"; `device` may be "auto".

    Without `classes`, they are those of `start`, or else those that `training_vocabulary` selects. Without `real_set`,
    the image set of a PASCAL VOC folder is "train"; `real_share` is 0.5 by default.
    """

    out: str
    shards: tuple[str, ...] = ()
    classes: str | None = None
    architecture: str = "segformer"
    real: str | None = None
    real_set: str | None = None
    annotations: str | None = None
    real_classes: str = "all"
    split: str | None = None
    real_share: float | None = None
    steps: int = 4000
    batch: int = 16
    side: int = 128
    learning_rate: float = 6e-4
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    start: str | None = None

    def absolute(self) -> "SegmenterTraining":
        """The same run with absolute paths, which mean the same in every process."""
        return replace(
            self,
            out=str(local_path(self.out, "--out").absolute()),
            shards=absolute(self.shards),
            classes=_absolute(self.classes) if self.classes and expanded(self.classes).is_file() else self.classes,
            architecture=_absolute(self.architecture) if expanded(self.architecture).is_dir() else self.architecture,
            real=absolute((self.real,))[0] if self.real else None,
            split=_absolute(self.split) if self.split and expanded(self.split).is_file() else self.split,
            annotations=str(Path(self.annotations).absolute()) if self.annotations else None,
            start=str(Path(self.start).absolute()) if self.start else None,
        )


def _absolute(path: str) -> str:
    return str(expanded(path).absolute())


@dataclass(frozen=True)
class _Data:
    """What a run trains on; `shares` as in `SegmenterTask`."""

    vocabulary: Vocabulary
    sources: list["LabelledSource"]
    shares: list[float] | None


def check(run: SegmenterTraining) -> _Data:
    """The data of a run. UserError if they or an option are invalid, found without PyTorch."""
    out = local_path(run.out, "--out")
    check_run_folder(out)
    check_device_name(run.device)
    check_start("segmenter", run.start, out)
    _options(run)
    _check_architecture(run.architecture)
    _check_together(run)
    vocabulary = _vocabulary(run, out)
    sources, shares = _sources(run, vocabulary)
    _check_all_used(run, sources, shares)
    return _Data(vocabulary, sources, shares)


def train_here(run: SegmenterTraining, report: Callable[[str], None] = _log.info) -> Path:
    """Train in this process, resuming the run in `run.out` if there is one. Returns the trained segmenter's folder."""
    data = check(run)

    import torch

    quiet_model_libraries()
    from factory.segmenter.training import SegmenterOptions, SegmenterTask
    from factory.training.loop import train

    out, device = local_path(run.out, "--out"), chosen_device(run.device)
    if run.threads:
        torch.set_num_threads(run.threads)
    for note in (note for source in data.sources for note in getattr(source, "notes", ())):
        report(note)
    model_options = SegmenterOptions(run.architecture, run.side)
    recorded = asdict(run) | {"real_set": run.real_set or _IMAGE_SET, "real_share": _real_share(run)}
    task = SegmenterTask(data.sources, data.vocabulary, model_options, device, data.shares, {"run": recorded})
    return train(task, replace(_options(run), device=device), out, report)


def _options(run: SegmenterTraining) -> TrainOptions:
    return TrainOptions(
        steps=run.steps,
        batch=run.batch,
        learning_rate=run.learning_rate,
        seed=run.seed,
        ema_decay=0.99,
        weight_decay=0.01,
        start=run.start,
    )


def _check_architecture(name: str) -> None:
    """UserError for a path that is not that of a model. Hub ids are checked when the model is loaded."""
    path = expanded(name)
    if name in ARCHITECTURES or (path / "config.json").is_file():
        return
    known = f"give {', '.join(ARCHITECTURES)}, a folder or a hub id like owner/name"
    if path.exists():
        raise UserError(
            f"--architecture {name} is not the folder of a segmentation model: it has no config.json; {known}."
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"there is no architecture {name}; {known}.")


def _vocabulary(run: SegmenterTraining, out: Path) -> Vocabulary:
    """The classes to train. UserError if the given ones are not those of the initial weights."""
    start = Path(run.start) if run.start else None
    # A run that is resumed has the same classes, but no longer needs the folder of its initial weights.
    if start is not None and ((start / STORED).is_file() or not (out / CHECKPOINT).exists()):
        return common_vocabulary([start], run.classes)
    datasets = [*run.shards, *([run.real] if run.real and is_dataset(run.real) else [])]
    return training_vocabulary(run.classes, datasets, run.annotations is not None)


def _real_source(run: SegmenterTraining, address: str, vocabulary: Vocabulary) -> "LabelledSource":
    """A dataset of `factory invert`, COCO images or a VOC folder.

    UserError for a dataset of generated images, or if a dataset may show unseen classes.
    """
    from factory.dataset.stored_recipe import recipe_of
    from factory.labelled.folders import check_no_image_set, open_labelled
    from factory.segmenter.data import DatasetSource

    only = seen_classes(vocabulary, run.split) if run.split is not None and run.real_classes == "seen" else None
    store = Store(address)
    if not is_dataset(address):
        annotations = Path(run.annotations) if run.annotations else None
        if annotations is not None:
            check_no_image_set(run.real_set)
        root = local_path(address, "--real of a labelled folder")
        return open_labelled(root, run.real_set or _IMAGE_SET, annotations, vocabulary, only)
    if run.annotations or run.real_set is not None:
        option = "--annotations" if run.annotations else f"--real-set {run.real_set}"
        raise UserError(
            f"{option} has no effect because --real {address} is a dataset, which contains its labels; remove it."
        )
    recipe = recipe_of(store)
    if recipe.real is None or recipe.oracle is None:
        raise UserError(
            f"--real {address} is a dataset of generated images; give it without --real, or give labelled images or a "
            f"dataset of `factory invert`."
        )
    unseen = [name for name in recipe.oracle.seen if only is not None and vocabulary.resolve(name).name not in only]
    if unseen:
        raise UserError(
            f"{address} may show {', '.join(unseen[:3])}, unseen in split {run.split}; make it with `factory invert "
            f"--split {run.split}`, or use --real-classes all."
        )
    return DatasetSource(store, vocabulary)


def _real_share(run: SegmenterTraining) -> float:
    return 0.5 if run.real_share is None else run.real_share


def _sources(run: SegmenterTraining, vocabulary: Vocabulary) -> tuple[list["LabelledSource"], list[float] | None]:
    """The training sources and their shares of the samples; None if the shares are proportional to the sizes."""
    from factory.segmenter.data import DatasetSource

    datasets: list[LabelledSource] = [DatasetSource(Store(address), vocabulary) for address in run.shards]
    if run.real is None:
        return datasets, None
    real = _real_source(run, run.real, vocabulary)
    if not datasets:
        return [real], None
    share, total = _real_share(run), sum(dataset.size for dataset in datasets)
    shares = [(1 - share) * dataset.size / total for dataset in datasets]
    return [*datasets, real], [*shares, share]


def _check_together(run: SegmenterTraining) -> None:
    """UserError for options that contradict each other, or have no effect together."""
    if run.real_classes not in ("all", "seen"):
        raise UserError(f"--real-classes must be all or seen, got {run.real_classes!r}.")
    if run.real_classes == "seen" and run.split is None:
        raise UserError("--real-classes seen requires --split, for example --real-classes seen --split 1.")
    if run.split is not None and run.real_classes != "seen":
        raise UserError(
            f"--split {run.split} has no effect with --real-classes all, which also trains on labels of unseen "
            f"classes; add --real-classes seen, or leave --split out."
        )
    if run.real is None:
        _check_without_real(run)
    elif not run.shards:
        if run.real_share is not None:
            raise UserError(
                f"--real-share {run.real_share:g} has no effect, because --real is all that is trained on; give a "
                f"dataset as well, or leave --real-share out."
            )
    elif not 0 < _real_share(run) < 1:
        raise UserError(
            f"--real-share is {_real_share(run)}, so either the datasets or --real would not be used; give a share "
            f"between 0 and 1 (exclusive), or leave one of the two out."
        )


def _check_without_real(run: SegmenterTraining) -> None:
    """UserError for an option about labelled images without any."""
    of_real = {
        "--annotations": run.annotations,
        "--real-set": run.real_set,
        "--real-share": run.real_share,
        "--real-classes seen": True if run.real_classes == "seen" else None,
    }
    option = next((name for name, value in of_real.items() if value is not None), None)
    if option is not None:
        raise UserError(f"{option} requires --real, the labelled images that it refers to; add --real or remove it.")
    if not run.shards:
        raise UserError("there is nothing to train on; give a dataset folder, --real, or both.")


def _check_all_used(
    run: SegmenterTraining, sources: Sequence["LabelledSource"], shares: Sequence[float] | None
) -> None:
    """UserError if the run is too short to use samples of every source."""
    weights = shares or [source.size for source in sources]
    names = [*run.shards, *([run.real] if run.real else [])]
    for name, weight in zip(names, weights, strict=True):
        share = weight / sum(weights)
        if share * run.batch * run.steps < 1:
            raise UserError(
                f"{run.steps} steps of {run.batch} samples would use no sample of {name}, whose share is {share:.2g}; "
                f"give at least {math.ceil(1 / share / run.batch)} --steps, or leave it out."
            )
