"""Grounders measured on inverted real images, against labels that people made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from factory.dataset.storage import Store
from factory.errors import UserError
from factory.files.paths import split_named_path
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.data import OracleSample, OracleSet
from factory.grounder.folder import check_fits
from factory.grounder.tally import IoUMeter
from factory.grounder.trained import TrainedGrounder, labels_of, open_grounders, to_pictures
from factory.training.devices import chosen_device

_BATCH = 8


@dataclass(frozen=True)
class RealResult:
    """One grounder's mIoU on one set, classes pooled then averaged; NaN where a group has no image.

    `seen` and `unseen` are over classes that the grounder was and was not trained on.
    """

    method: str
    split: str
    real: str
    miou: float
    seen: float
    unseen: float
    images: int


def on_real(
    folders: Sequence[str],
    sets: Sequence[str],
    device: str = "auto",
    threads: int = 1,
    report: Callable[[str], None] = print,
) -> list[RealResult]:
    """Every grounder ("FOLDER" or "NAME=FOLDER") on every inverted set ("SET" or "NAME=SET").

    UserError where a set is none of `invert`, or of another model; all are opened before anything is run.
    """
    device = chosen_device(device)
    grounders = open_grounders(folders, device, threads)
    opened = [_open(one) for one in sets]
    for _, one in opened:
        for name, grounder in grounders:
            check_fits(name, grounder.config, one.recipe.generator)
    results = []
    for real, one in opened:
        for name, grounder in grounders:
            if grounder.config.timestep != one.recipe.masks.timesteps[0]:
                report(
                    f"{name} reads features at timestep {grounder.config.timestep}, {real} holds those of "
                    f"{one.recipe.masks.timesteps[0]}."
                )
            results.append(_measure(name, grounder, real, one, device))
            report(f"{real}: {name} {results[-1].miou:.3f} over {results[-1].images} images")
    return results


def _open(named: str) -> tuple[str, OracleSet]:
    name, address = split_named_path(named)
    opened = OracleSet(Store(address))
    if opened.recipe.real is None:
        raise UserError(f"{address} is no set of real images; make one with `factory invert --split all`.")
    return name or address, opened


def _measure(name: str, grounder: TrainedGrounder, real: str, opened: OracleSet, device: str) -> RealResult:
    reader = PipelineGenerator(opened.recipe, device, grounder.needs)
    tally = IoUMeter()
    for number in opened.receipts:
        samples = list(opened.samples(number))
        for start in range(0, len(samples), _BATCH):
            part = samples[start : start + _BATCH]
            for row, labels in zip(part, predict(grounder, reader, part), strict=True):
                tally.add(row.prompt.classes, labels, row.labels)
    seen = set(grounder.config.classes_seen)
    return RealResult(
        method=name,
        split=grounder.config.split,
        real=real,
        miou=tally.miou,
        seen=tally.miou_of(seen),
        unseen=tally.miou_of(set(tally.union) - seen),
        images=tally.images,
    )


@torch.inference_mode()
def predict(grounder: TrainedGrounder, reader: PipelineGenerator, part: Sequence[OracleSample]) -> np.ndarray:
    """Labels (B, H, W): k where the k-th class of a sample's prompt is. `reader` recomputes what the grounder reads."""
    latents = torch.from_numpy(np.stack([row.latent for row in part])).float()
    captured = reader.read(latents, [row.timestep for row in part], [row.prompt for row in part])
    logits = grounder.logits(captured, to_pictures([row.image for row in part]))
    most = logits.shape[1]
    for place, row in enumerate(part):
        logits[place, len(row.prompt.classes) : most] = -1e4
    return labels_of(logits)


def as_markdown(results: Sequence[RealResult]) -> str:
    """The results as a table, percent."""
    lines = ["| images | grounder | split | mIoU | seen classes | unseen classes | number |", "|---" * 7 + "|"]
    for row in results:
        figures = " | ".join(
            "" if value != value else f"{100 * value:.1f}" for value in (row.miou, row.seen, row.unseen)
        )
        lines.append(f"| {row.real} | {row.method} | {row.split} | {figures} | {row.images} |")
    return "\n".join(lines)
