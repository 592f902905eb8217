"""Protocol I of the paper: compares the masks of grounders with those of the detector on newly generated images."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from factory.config.plan import PlannedSample
from factory.config.prompts import Prompt, captioned
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.records import Grounded
from factory.detector.fitting import FittingDetector
from factory.detector.load import open_detector
from factory.detector.oracle import OracleGrounder
from factory.errors import UserError
from factory.evaluation.markdown import percent
from factory.files.atomic import write_atomically
from factory.files.strict_json import dumps
from factory.generation.pin import pin_recipe
from factory.generator.interface import Generated, Request
from factory.generator.load import model_folder
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.attention import AttentionGrounder
from factory.grounder.folder import check_fits
from factory.grounder.iou import IoUMeter, label_map
from factory.grounder.trained import TrainedGrounder, open_grounders
from factory.training.devices import chosen_device

_log = logging.getLogger(__name__)

GROUPS = ("one seen", "one unseen", "two seen", "seen + unseen", "two unseen")
"""The groups of prompts, which are the columns of tables 1 and 2 of the paper."""
_SEED = 7_000_000
"""Differs from the default seeds of datasets."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class GrounderResult:
    """The result of a method on a group of a split.

    `miou`, 0 to 1, pools the pixels of a class over all images of the group and averages over classes; `image_miou` is
    the mean IoU of all objects of all images. `images` counts the images in which the detector found every class of the
    prompt, out of `tried`. The values are NaN without images, for example if a split has too few classes for the group.
    """

    method: str
    split: str
    group: str
    miou: float
    image_miou: float
    images: int
    tried: int


def protocol_1(
    folders: Sequence[str],
    classes: str,
    images: int,
    device: str = "auto",
    threads: int = 1,
    report: Report = _log.info,
) -> list[GrounderResult]:
    """Evaluate every grounder ("FOLDER" or "NAME=FOLDER") and the attention baseline on the grounder's split.

    `images` is the number of images per group and split. Images and reference masks come from the same model, solver,
    steps and detector as the oracle dataset of the grounder. Raises UserError if a grounder does not fit the
    vocabulary.
    """
    device = chosen_device(device)
    by_split: dict[str, dict[str, TrainedGrounder]] = {}
    for name, grounder in open_grounders(folders, device, threads):
        by_split.setdefault(grounder.config.split, {})[name] = grounder
    # First all recipes, so that a grounder that does not fit is found before hours of evaluation.
    recipes = {split: split_recipe(grounders, split, classes, threads) for split, grounders in by_split.items()}
    results: list[GrounderResult] = []
    for split, grounders in by_split.items():
        results += _evaluate_split(grounders, split, recipes[split], images, device, report)
    return results


def _evaluate_split(
    grounders: dict[str, TrainedGrounder],
    split: str,
    recipe: Recipe,
    images: int,
    device: str,
    report: Report,
) -> list[GrounderResult]:
    evaluation = SplitEvaluation(grounders, recipe, device)
    results = []
    for group in GROUPS:
        measured = _measure(evaluation, group, images)
        results += [GrounderResult(method, split, group, *figures) for method, figures in measured.items()]
        if not results[-1].tried:
            report(f"split {split}, {group}: not measured, because the split has too few classes")
            continue
        summary = ", ".join(f"{result.method} {result.miou:.3f}" for result in results[-len(measured) :])
        report(f"split {split}, {group}: {summary} ({results[-1].images} of {results[-1].tried} images)")
    return results


def split_recipe(grounders: dict[str, TrainedGrounder], split: str, classes: str, threads: int) -> Recipe:
    """The recipe of the images that grounders of one split are measured on, with pinned models.

    Raises UserError if the grounders read different features or do not fit the model, or if `classes` is not their
    vocabulary.
    """
    first, *others = grounders.values()
    config = first.config
    if any(_inputs(other) != _inputs(first) for other in others):
        raise UserError(
            f"the grounders of split {split} read different models or noise levels; evaluate them one at a time."
        )
    generator = {"model": config.model, **config.oracle.get("generator", {}), "threads": threads}
    if model_folder(config.model) is None:
        generator["revision"] = config.revision  # on the hub, a newer commit may exist
    masks = {**config.oracle.get("masks", {}), "source": "attention"}
    recipe = make_recipe({"n": 1, "classes": classes, "batch": 8, "generator": generator, "masks": masks})
    names = recipe.vocabulary().names
    if not set(names) > set(config.classes_seen):
        raise UserError(
            f"a grounder of split {split} was trained on {', '.join(config.classes_seen[:5])} ..., which is not a "
            f"split of {classes}; give the vocabulary of its oracle datasets with --classes."
        )
    recipe = pin_recipe(recipe)
    for name, grounder in grounders.items():
        check_fits(name, grounder.config, recipe.generator)
    return recipe


@dataclass(frozen=True)
class EvaluationBatch:
    """The images of a micro-batch from each generator, and the masks of the detector.

    The k-th image, `generated[m][k]`, is the same for every generator m; only the captured features differ.
    """

    prompts: Sequence[Prompt]
    generated: Sequence[Sequence[Generated]]
    truths: Sequence[Grounded]

    @property
    def complete(self) -> list[int]:
        """Indices of the images in which the detector found every class of the prompt."""
        return [k for k, truth in enumerate(self.truths) if len(truth.instances) == len(self.prompts[k].classes)]


class SplitEvaluation:
    """Grounders of one split, with the generators of their images and the detector of the reference masks.

    Images and reference masks are made as in the oracle dataset of the grounders. `generators` pairs each generator
    with the methods that use its features; the first one is for the attention baseline.
    """

    def __init__(self, grounders: dict[str, TrainedGrounder], recipe: Recipe, device: str) -> None:
        """`recipe` is that of `split_recipe` for these grounders."""
        config = next(iter(grounders.values())).config
        captured = {"noise_level": config.noise_level, "noise_seed": config.noise_seed}
        trained = recipe.model_copy(update={"masks": recipe.masks.model_copy(update=captured)})
        self._vocabulary, self._batch = recipe.vocabulary(), recipe.batch
        self._seen = list(config.classes_seen)
        self._unseen = [name for name in self._vocabulary.names if name not in config.classes_seen]
        self.detector = FittingDetector(open_detector(recipe, device), recipe.masks.detector)
        self._oracle = OracleGrounder(self.detector, recipe.masks)
        attention = AttentionGrounder(recipe.masks)
        needs = frozenset[str]().union(*(grounder.needs for grounder in grounders.values()))
        baseline = PipelineGenerator(recipe, device, attention.needs)
        self.generators: list[tuple[PipelineGenerator, dict[str, Any]]] = [
            (baseline, {"attention": attention}),
            (PipelineGenerator(trained, device, needs, baseline.pipeline), {**grounders}),
        ]

    def batches(self, group: str, max_images: int) -> Iterator[EvaluationBatch]:
        """Up to `max_images` new images of a group, one of GROUPS; the same images in every call."""
        numbered = self._prompts(group, max_images)
        for start in range(0, len(numbered), self._batch):
            part = numbered[start : start + self._batch]
            prompts = [prompt for _, prompt in part]
            requests = [Request(prompt, PlannedSample(index, prompt).seed(_SEED, 0)) for index, prompt in part]
            generated = [generator.generate(requests) for generator, _ in self.generators]
            yield EvaluationBatch(prompts, generated, self._oracle.ground(generated[0], prompts))

    def _prompts(self, group: str, count: int) -> list[tuple[int, Prompt]]:
        """Numbered prompts of a group: the first classes take turns, the second ones are random.

        Empty if the split has too few classes: a split file may name a single unseen class.
        """
        number, seen, unseen = GROUPS.index(group), self._seen, self._unseen
        random = np.random.default_rng((number, len(seen)))
        pools = ((seen,), (unseen,), (seen, seen), (seen, unseen), (unseen, unseen))[number]
        if any(len(pool) < pools.count(pool) for pool in pools):
            return []
        prompts = []
        for k in range(count):
            names = [pools[0][k % len(pools[0])]]
            for pool in pools[1:]:
                names.append(str(random.choice([name for name in pool if name not in names])))
            if random.random() < 0.5:
                names.reverse()
            prompts.append((number * 1_000_000 + k, captioned(self._vocabulary, names)))
        return prompts


def _measure(evaluation: SplitEvaluation, group: str, max_images: int) -> dict[str, tuple[float, float, int, int]]:
    """(mIoU, mIoU of images, images counted, images tried) by method."""
    meters: dict[str, IoUMeter] = {name: IoUMeter() for _, methods in evaluation.generators for name in methods}
    counted = tried = 0
    # The detector does not find every class in every image, so up to three times as many images are generated.
    for batch in evaluation.batches(group, 3 * max_images):
        shape = batch.generated[0][0].image.shape[:2]
        kept = batch.complete[: max_images - counted]
        for generated, (_, methods) in zip(batch.generated, evaluation.generators, strict=True):
            for name, method in methods.items():
                predicted = method.ground(generated, batch.prompts)
                for k in kept:
                    classes = batch.prompts[k].classes
                    truth = label_map(batch.truths[k].disjoint(), classes, shape)
                    meters[name].add(classes, label_map(predicted[k].disjoint(), classes, shape), truth)
        counted, tried = counted + len(kept), tried + len(batch.prompts)
        if counted >= max_images:
            break
    return {name: (meter.miou, meter.image_miou, counted, tried) for name, meter in meters.items()}


def _inputs(grounder: TrainedGrounder) -> tuple[object, ...]:
    config = grounder.config
    read = config.model, config.revision, config.lora, config.noise_level, config.noise_seed
    return *read, config.classes_seen, config.oracle


def averaged(results: Sequence[GrounderResult]) -> Iterator[tuple[str, dict[str, float]]]:
    """(method, mIoU by group), averaged over the splits of the method, in the order of the methods."""
    for method in dict.fromkeys(result.method for result in results):
        own = [result for result in results if result.method == method]
        yield method, {group: float(np.mean([r.miou for r in own if r.group == group])) for group in GROUPS}


PAPER = {
    "voc": {"published, Mask R-CNN": (90.3, 83.1, 79.1, 67.9, 55.7), "published, DAAM": (64.8, 62.9, 48.2, 49.2, 51.0)},
    "coco": {
        "published, Mask R-CNN": (83.7, 73.2, 64.2, 56.3, 44.4),
        "published, DAAM": (61.7, 57.8, 49.8, 52.2, 40.8),
    },
}
"""The mIoU in the paper in percent, averaged over its three splits (tables 1 and 2)."""


def as_markdown(results: Sequence[GrounderResult], classes: str) -> str:
    """A table of mIoU in percent, with the figures of the paper in the first rows.

    A method that was not measured on all splits is marked with its splits.
    """
    lines = [f"| | {' | '.join(GROUPS)} |", "|---" * (len(GROUPS) + 1) + "|"]
    for name, figures in PAPER.get(classes, {}).items():
        lines.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in figures)} |")
    splits = dict.fromkeys(result.split for result in results)
    for method, by_group in averaged(results):
        own = dict.fromkeys(result.split for result in results if result.method == method)
        label = f"`{method}`" if own == splits else f"`{method}`, only split {', '.join(own)}"
        lines.append(f"| {label} | {' | '.join(percent(by_group[group]) for group in GROUPS)} |")
    # All methods of a split are measured on the same images.
    images = {(result.split, result.group): result.images for result in results}
    summary = ", ".join(f"{sum(images.get((split, group), 0) for split in splits)} {group}" for group in GROUPS)
    lines += ["", f"Averaged over split {', '.join(splits)}. Images: {summary}."]
    return "\n".join(lines)


def write_results(results: Sequence[GrounderResult], classes: str, out: Path) -> None:
    """Write `protocol-1.json` and `protocol-1.md` to a folder."""
    out.mkdir(parents=True, exist_ok=True)
    data = {"classes": classes, "results": [asdict(result) for result in results], "average": dict(averaged(results))}
    write_atomically(out / "protocol-1.json", dumps(data, indent=1) + "\n")
    write_atomically(out / "protocol-1.md", as_markdown(results, classes) + "\n")
