"""Training and measuring a segmenter, from options."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from factory.config.vocabulary import Vocabulary, parse_classes
from factory.dataset.storage import Store, absolute
from factory.errors import UserError
from factory.files.paths import local_path
from factory.hf_logging import quiet_model_libraries

if TYPE_CHECKING:
    from factory.segmenter.data import Source
    from factory.segmenter.evaluate import SegmenterScore


@dataclass(frozen=True)
class SegmenterTraining:
    """What to train on what, and where to. `real_classes` is "all" or "seen"; `device` may be "auto"."""

    out: str
    shards: tuple[str, ...] = ()
    classes: str = "voc"
    architecture: str = "segformer"
    real: str | None = None
    real_set: str = "train"
    annotations: str | None = None
    real_classes: str = "all"
    split: str | None = None
    real_share: float = 0.5
    steps: int = 4000
    batch: int = 16
    side: int = 128
    learning_rate: float = 6e-4
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    start: str | None = None

    def absolute(self) -> "SegmenterTraining":
        """The same run, with addresses that mean the same in every process."""
        return replace(
            self,
            out=str(local_path(self.out, "--out").absolute()),
            shards=absolute(self.shards),
            classes=str(Path(self.classes).absolute()) if Path(self.classes).is_file() else self.classes,
            architecture=str(Path(self.architecture).absolute())
            if Path(self.architecture).is_dir()
            else self.architecture,
            real=absolute((self.real,))[0] if self.real else None,
            annotations=str(Path(self.annotations).absolute()) if self.annotations else None,
            start=str(Path(self.start).absolute()) if self.start else None,
        )


def train_here(run: SegmenterTraining, report: Callable[[str], None] = lambda text: print(text, flush=True)) -> Path:
    """Train in this process, resuming what lies in `run.out`; return the folder of the finished segmenter."""
    import torch

    quiet_model_libraries()
    from factory.segmenter.training import SegmenterOptions, SegmenterTask
    from factory.training.devices import chosen_device
    from factory.training.loop import TrainOptions, train

    out, device = local_path(run.out, "--out"), chosen_device(run.device)
    if run.threads:
        torch.set_num_threads(run.threads)
    vocabulary = parse_classes(run.classes)
    sources, shares = _sources(run, vocabulary)
    _check_all_used(run, sources, shares)
    for note in (note for source in sources for note in getattr(source, "notes", ())):
        report(note)
    options = TrainOptions(
        steps=run.steps,
        batch=run.batch,
        learning_rate=run.learning_rate,
        seed=run.seed,
        device=device,
        ema_decay=0.99,
        weight_decay=0.01,
        start=run.start,
    )
    chosen = SegmenterOptions(run.architecture, run.side)
    task = SegmenterTask(sources, vocabulary, chosen, device, shares, {"run": asdict(run)})
    return train(task, options, out, report)


@dataclass(frozen=True)
class RealImages:
    """Labelled images to measure on: an image set of a PASCAL VOC folder, or COCO's where `annotations` is given.

    `split` tells seen and unseen classes of the vocabulary apart.
    """

    root: Path
    image_set: str = "val"
    annotations: Path | None = None
    classes: str = "voc"
    split: str | None = None


def evaluate_here(
    folder: Path,
    test: RealImages,
    device: str = "auto",
    threads: int = 0,
    report: Callable[[str], None] = lambda text: None,
) -> "SegmenterScore":
    """The segmenter's figures. UserError where its classes are not those asked for."""
    import torch

    quiet_model_libraries()
    from factory.labelled.folders import open_labelled
    from factory.segmenter.evaluate import score
    from factory.segmenter.model import load_segmenter
    from factory.training.devices import chosen_device

    device = chosen_device(device)
    if threads:
        torch.set_num_threads(threads)
    vocabulary = parse_classes(test.classes)
    model = load_segmenter(folder)
    if model.names[1:] != vocabulary.names:
        raise UserError(
            f"{folder} tells {len(model.names) - 1} classes apart ({', '.join(model.names[1:4])} ...), which are not "
            f"those of {test.classes}; give the vocabulary that it was trained for with --classes."
        )
    unseen = vocabulary.unseen(test.split) if test.split is not None else ()
    images = open_labelled(test.root, test.image_set, test.annotations, vocabulary)
    for note in images.notes:
        report(note)
    return score(model, images, unseen, device, lambda done: report(f"{done} of {images.size} images"))


def _real_source(run: SegmenterTraining, address: str, vocabulary: Vocabulary) -> "Source":
    """A set of `factory invert`, COCO's images or a VOC folder. UserError where a set may show unseen classes."""
    from factory.dataset.state import RECIPE, recipe_of
    from factory.labelled.folders import open_labelled
    from factory.segmenter.data import DatasetSource

    only = vocabulary.seen(run.split) if run.split is not None and run.real_classes == "seen" else None
    store = Store(address)
    if store.get(RECIPE) is None:
        annotations = Path(run.annotations) if run.annotations else None
        return open_labelled(
            local_path(address, "--real of a labelled folder"), run.real_set, annotations, vocabulary, only
        )
    oracle = recipe_of(store).oracle
    shown = recipe_of(store).vocabulary().names if oracle is None else oracle.seen
    others = [name for name in shown if only is not None and vocabulary.resolve(name).name not in only]
    if others:
        raise UserError(
            f"{address} may show {', '.join(others[:3])}, unseen in split {run.split}; make it with `factory invert "
            f"--split {run.split}`, or take --real-classes all."
        )
    return DatasetSource(store, vocabulary)


def _sources(run: SegmenterTraining, vocabulary: Vocabulary) -> tuple[list["Source"], list[float] | None]:
    """What to train on, and each source's share of the samples; None for their sizes."""
    from factory.segmenter.data import DatasetSource

    if run.real_classes not in ("all", "seen"):
        raise UserError(f"--real-classes is all or seen, got {run.real_classes!r}.")
    if run.real_classes == "seen" and run.split is None:
        raise UserError("which classes are seen? Give --split, as in --real-classes seen --split 1.")
    sets: list[Source] = [DatasetSource(Store(address), vocabulary) for address in run.shards]
    if run.real is None:
        if not sets:
            raise UserError("there is nothing to train on; give a set's folder, --real, or both.")
        return sets, None
    real = _real_source(run, run.real, vocabulary)
    if not sets:
        return [real], None
    if not 0 < run.real_share < 1:
        raise UserError(
            f"--real-share is {run.real_share}, with which one of the datasets and --real would not be used; give a "
            f"share between 0 and 1, or leave one of the two out."
        )
    total = sum(one.size for one in sets)
    return [*sets, real], [*((1 - run.real_share) * one.size / total for one in sets), run.real_share]


def _check_all_used(run: SegmenterTraining, sources: Sequence["Source"], shares: Sequence[float] | None) -> None:
    """UserError where the run is so short that not one sample of a source would be trained on."""
    weights = shares or [one.size for one in sources]
    names = [*run.shards, *([run.real] if run.real else [])]
    for name, weight in zip(names, weights, strict=True):
        share = weight / sum(weights)
        if share * run.batch * run.steps < 1:
            raise UserError(
                f"{run.steps} steps of {run.batch} would use no sample of {name}, whose share is {share:.2g}; give at "
                f"least {math.ceil(1 / share / run.batch)} --steps, or leave it out."
            )
