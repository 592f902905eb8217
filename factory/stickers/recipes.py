"""The training recipes of the embedded models, and a function that runs them."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from factory.training.loop import TrainTask, train
from factory.training.options import TrainOptions

_log = logging.getLogger(__name__)

_DETECTOR = {"steps": 4000, "batch": 32, "learning_rate": 3e-3, "ema_decay": 0.995, "weight_decay": 0.01}
_RECIPES: dict[str, dict[str, Any]] = {
    "autoencoder": {"steps": 3200, "batch": 8, "learning_rate": 3e-3, "ema_decay": 0.998, "weight_decay": 0.0},
    "diffusion": {"steps": 5000, "batch": 48, "learning_rate": 3e-3, "ema_decay": 0.997, "weight_decay": 0.01},
    "turbo": {"steps": 1500, "batch": 32, "learning_rate": 1e-3, "ema_decay": 0.995, "weight_decay": 0.0},
    "detector": _DETECTOR,
    "judge": _DETECTOR,
}
"""Options of each recipe; all use Muon and the trapezoid schedule. `steps` of turbo apply to each of its stages."""


def run_recipe(
    part: str,
    out: Path,
    steps: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    device: str = "cpu",
    threads: int = 0,
    seed: int = 0,
    start: Path | None = None,
    report: Callable[[str], None] = _log.info,
) -> Path:
    """Train `part` in its folder below `out`, resuming if possible. Returns the folder of the trained model.

    The models that it depends on are read from `out`, or else from the package: the autoencoder for the text-to-image
    model and the detector, and the text-to-image model for the few-step model.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    overrides = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "start": start and str(start)}
    options = {**_RECIPES[part], **{key: value for key, value in overrides.items() if value is not None}}
    train_options = TrainOptions(**options, device=device, seed=seed, optimizer="muon", schedule="trapezoid")
    if part != "turbo":
        task = _task(part, out, device, report)
        return train(task, train_options, out / task.name, report)
    from factory.stickers.train_turbo import STAGES, TurboTask

    folder = _trained_or_shipped(out / "diffusion" / "model", "")
    autoencoder = _trained_or_shipped(out / "autoencoder" / "model", "vae")
    for stage in STAGES:
        # A finished stage ends immediately; its checkpoint shows whether it had the same teacher and options.
        turbo = TurboTask(stage, folder, autoencoder, out / "diffusion" / "latents.pt", device, report)
        folder = train(turbo, train_options, out / turbo.name, report)
        train_options = replace(train_options, start=None)  # the next stage starts with the weights of this one
    return folder


def _task(part: str, out: Path, device: str, report: Callable[[str], None]) -> TrainTask:
    if part == "autoencoder":
        from factory.stickers.train_autoencoder import AutoencoderTask

        return AutoencoderTask(device)
    autoencoder = _trained_or_shipped(out / "autoencoder" / "model", "vae")
    if part in ("detector", "judge"):
        from factory.stickers.train_detector import DetectorTask

        return DetectorTask(device, autoencoder, judge=part == "judge")
    from factory.stickers.train_diffusion import DiffusionTask

    return DiffusionTask(autoencoder, out / "diffusion" / "latents.pt", device, report)


def _trained_or_shipped(trained: Path, part: str) -> Path:
    from factory.files.embedded_models import pipeline_folder

    return trained if trained.exists() else pipeline_folder() / part
