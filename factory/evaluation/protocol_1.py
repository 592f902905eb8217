"""Protocol I of the paper: compares the masks of grounders with those of the detector on newly generated images."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from factory.config.class_option import classes_field
from factory.config.recipe import Recipe, make_recipe
from factory.config.vocabulary import coco, voc
from factory.errors import UserError
from factory.evaluation.grounder_results import GROUPS, GrounderResult
from factory.evaluation.markdown import percent
from factory.generation.pin import pin_recipe
from factory.generation.preflight import warn_of_sticker_detector
from factory.generator.load import model_folder
from factory.grounder.folder import GrounderConfig, check_fits, named_grounders
from factory.hf_logging import quiet_model_libraries
from factory.training.devices import check_device_name, chosen_device

if TYPE_CHECKING:
    from factory.grounder.trained import TrainedGrounder

_log = logging.getLogger(__name__)

Report = Callable[[str], None]


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
