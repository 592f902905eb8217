"""Protocol I of the paper: compares the masks of grounders with those of the detector on newly generated images."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from factory.config.class_option import classes_field
from factory.config.recipe import Recipe, make_recipe
from factory.config.vocabulary import coco, voc
from factory.errors import UserError
from factory.evaluation.markdown import cell, percent
from factory.files.atomic import write_atomically
from factory.files.strict_json import dumps
from factory.generation.pin import pin_recipe
from factory.generation.preflight import warn_of_sticker_detector
from factory.generator.load import model_folder
from factory.grounder.folder import GrounderConfig, check_fits, named_grounders
from factory.hf_logging import quiet_model_libraries
from factory.training.devices import check_device_name, chosen_device

if TYPE_CHECKING:
    from factory.grounder.trained import TrainedGrounder

_log = logging.getLogger(__name__)

GROUPS = ("one seen", "one unseen", "two seen", "seen + unseen", "two unseen")
"""The groups of prompts, which are the columns of tables 1 and 2 of the paper."""

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
    check_device_name(device)
    configs: dict[str, dict[str, GrounderConfig]] = {}
    for name, _, config in named_grounders(folders):
        configs.setdefault(config.split, {})[name] = config
    # First all recipes, so that a grounder that does not fit is found before PyTorch and the models are loaded.
    recipes = {split: split_recipe(grounders, split, classes, threads) for split, grounders in configs.items()}
    for recipe in recipes.values():
        # Of grounders that were trained without a detector: on inverted images, or by the authors of the paper.
        warn_of_sticker_detector(
            recipe, "measure the grounder on labelled images with --real, or import it again with --detector"
        )

    quiet_model_libraries()
    from factory.grounder.trained import open_grounders

    device, by_split = chosen_device(device), dict[str, dict[str, "TrainedGrounder"]]()
    for name, grounder in open_grounders(folders, device, threads):
        by_split.setdefault(grounder.config.split, {})[name] = grounder
    results: list[GrounderResult] = []
    for split, grounders in by_split.items():
        results += _evaluate_split(grounders, split, recipes[split], images, device, report)
    return results


def _evaluate_split(
    grounders: dict[str, "TrainedGrounder"],
    split: str,
    recipe: Recipe,
    images: int,
    device: str,
    report: Report,
) -> list[GrounderResult]:
    from factory.evaluation.split_evaluation import SplitEvaluation, measure

    evaluation = SplitEvaluation(grounders, recipe, device)
    results = []
    for group in GROUPS:
        measured = measure(evaluation, group, images)
        results += [GrounderResult(method, split, group, *figures) for method, figures in measured.items()]
        if not results[-1].tried:
            report(f"split {split}, {group}: not measured, because the split has too few classes")
            continue
        summary = ", ".join(f"{result.method} {percent(result.miou)}" for result in results[-len(measured) :])
        report(f"split {split}, {group}: {summary} ({results[-1].images} of {results[-1].tried} images)")
    return results


def vocabulary_of(folders: Sequence[str]) -> str:
    """The vocabulary of the training data of grounders: coco if VOC lacks one of their seen classes, else voc."""
    seen = {name for _, _, config in named_grounders(folders) for name in config.classes_seen}
    return "coco" if seen <= {*coco().names} and not seen <= {*voc().names} else "voc"


def split_recipe(grounders: Mapping[str, GrounderConfig], split: str, classes: str, threads: int) -> Recipe:
    """The recipe of the images that grounders of one split are measured on, with pinned models.

    `classes` is a value of `--classes`. Raises UserError if the grounders read different features or do not fit the
    model, or if `classes` is not their vocabulary.
    """
    config, *others = grounders.values()
    if any(_inputs(other) != _inputs(config) for other in others):
        raise UserError(
            f"the grounders of split {split} read different models or noise levels; evaluate them one at a time."
        )
    generator = {"model": config.model, **config.oracle.get("generator", {}), "threads": threads}
    if model_folder(config.model) is None:
        generator["revision"] = config.revision  # on the hub, a newer commit may exist
    masks = {**config.oracle.get("masks", {}), "source": "attention"}
    fields = {"n": 1, "classes": classes_field(classes), "batch": 8, "generator": generator, "masks": masks}
    recipe = make_recipe(fields)
    names = recipe.vocabulary().names
    if not set(names) > set(config.classes_seen):
        raise UserError(
            f"a grounder of split {split} was trained on {', '.join(config.classes_seen[:5])} ..., which is not a "
            f"split of {classes}; give the vocabulary of its oracle datasets with --classes."
        )
    recipe = pin_recipe(recipe)
    for name, own in grounders.items():
        check_fits(name, own, recipe.generator)
    return recipe


def _inputs(config: GrounderConfig) -> tuple[object, ...]:
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
        label = f"`{cell(method)}`" if own == splits else f"`{cell(method)}`, only split {', '.join(own)}"
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
