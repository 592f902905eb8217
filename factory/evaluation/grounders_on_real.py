"""Evaluates grounders on inverted real images: their masks are compared with human labels."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from factory.config.vocabulary import shared_name
from factory.dataset.storage import Store
from factory.errors import UserError, counted
from factory.evaluation.markdown import cell, percent
from factory.files.paths import split_named_path
from factory.generator.load import check_unchanged
from factory.grounder.data import OracleDataset
from factory.grounder.folder import GrounderConfig, check_fits, named_grounders
from factory.grounder.iou import IoUMeter
from factory.hf_logging import quiet_model_libraries
from factory.training.devices import check_device_name, chosen_device

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RealResult:
    """The mIoU of a grounder on a dataset, 0 to 1, averaged over classes; NaN for a group without images.

    `seen` and `unseen` are averages over the classes that the grounder was and was not trained on, under any name.
    `area` is the area of all masks relative to that of the true ones.
    """

    method: str
    split: str
    real: str
    miou: float
    seen: float
    unseen: float
    area: float
    images: int


def on_real(
    folders: Sequence[str],
    datasets: Sequence[str],
    device: str = "auto",
    threads: int = 1,
    report: Callable[[str], None] = _log.info,
) -> list[RealResult]:
    """Evaluate every grounder ("FOLDER" or "NAME=FOLDER") on every inverted dataset ("DATASET" or "NAME=DATASET").

    All are opened before the first evaluation. Raises UserError if a dataset was not written by `invert` or has another
    model.
    """
    check_device_name(device)
    configs = [(name, config) for name, _, config in named_grounders(folders)]
    opened = [_open(text) for text in datasets]
    names = [name for name, _ in opened]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two arguments --real are both named {name}; give different names: first=DATASET.")
    for _, dataset in opened:
        check_unchanged(dataset.recipe.generator, dataset.store.address)
        for name, config in configs:
            check_fits(name, config, dataset.recipe.generator)

    quiet_model_libraries()
    from factory.evaluation.real_masks import measure
    from factory.grounder.trained import open_grounders

    device = chosen_device(device)
    grounders = open_grounders(folders, device, threads)
    results = []
    for real, dataset in opened:
        for name, grounder in grounders:
            if grounder.config.noise_level != dataset.recipe.masks.noise_level:
                report(
                    f"{name} was trained on features of noise level {grounder.config.noise_level:g}, but {real} has "
                    f"those of {dataset.recipe.masks.noise_level:g}."
                )
            if dataset.recipe.fingerprint() in grounder.config.data:
                report(
                    f"{name} was trained on {real}, so its figures there say nothing about other images; invert images "
                    f"that it was not trained on."
                )
            results.append(_result(name, grounder.config, real, measure(grounder, dataset, device)))
            report(f"{real}: {name} mIoU {percent(results[-1].miou)} over {counted(results[-1].images, 'image')}")
    return results


def _open(named: str) -> tuple[str, OracleDataset]:
    name, address = split_named_path(named)
    dataset = OracleDataset(Store(address), "factory invert --split all")
    if dataset.recipe.real is None:
        raise UserError(f"{address} is not a dataset of real images; create one with `factory invert --split all`.")
    return name or address, dataset


def _result(name: str, config: GrounderConfig, real: str, meter: IoUMeter) -> RealResult:
    trained = {shared_name(name) for name in config.classes_seen}
    seen = {name for name in meter.union if shared_name(name) in trained}
    return RealResult(
        method=name,
        split=config.split,
        real=real,
        miou=meter.miou,
        seen=meter.miou_of(seen),
        unseen=meter.miou_of(set(meter.union) - seen),
        area=meter.area,
        images=meter.images,
    )


def as_markdown(results: Sequence[RealResult]) -> str:
    """The results as a table, in percent."""
    lines = ["| dataset | grounder | split | mIoU | seen classes | unseen classes | area | images |", "|---" * 8 + "|"]
    for result in results:
        figures = " | ".join(percent(share) for share in (result.miou, result.seen, result.unseen, result.area))
        lines.append(f"| {cell(result.real)} | {cell(result.method)} | {result.split} | {figures} | {result.images} |")
    return "\n".join(lines)
