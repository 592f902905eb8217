"""The training recipes of the shipped models: one table of options, one way to run them."""

from pathlib import Path

from factory.training.loop import TrainOptions, TrainTask, train

_RECIPES = {
    "autoencoder": {"steps": 1600, "batch": 16, "learning_rate": 2e-3, "ema_decay": 0.99, "weight_decay": 0.0},
    "diffusion": {"steps": 8000, "batch": 32, "learning_rate": 1e-3, "ema_decay": 0.998, "weight_decay": 0.01},
    "detector": {"steps": 6000, "batch": 32, "learning_rate": 2e-3, "ema_decay": 0.99, "weight_decay": 0.02},
}


def run_recipe(
    part: str,
    out: Path,
    steps: int | None = None,
    batch: int | None = None,
    device: str = "cpu",
    threads: int = 0,
    seed: int = 0,
    start: Path | None = None,
) -> Path:
    """Train `part` in its folder below `out`, resuming what is there; return the folder of the finished model.

    Where `out` holds no trained autoencoder the diffusion model and the detector build on the shipped one.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    options = {
        key: value
        for key, value in {"steps": steps, "batch": batch, "start": start and str(start)}.items()
        if value is not None
    }
    chosen = TrainOptions(**{**_RECIPES[part], **options}, device=device, seed=seed)  # type: ignore[arg-type]
    return train(_task(part, out, device, chosen.steps), chosen, out / part, lambda text: print(text, flush=True))


def _task(part: str, out: Path, device: str, steps: int) -> TrainTask:
    if part == "autoencoder":
        from factory.stickers.train_autoencoder import AutoencoderTask

        return AutoencoderTask(device)
    from factory.stickers.embedded import pipeline_folder

    trained = out / "autoencoder" / "model"
    autoencoder = trained if trained.exists() else pipeline_folder() / "vae"
    if part == "detector":
        from factory.stickers.train_detector import DetectorTask

        return DetectorTask(device, steps, autoencoder)
    from factory.stickers.train_diffusion import DiffusionTask

    return DiffusionTask(autoencoder, out / "diffusion" / "latents.pt", device, lambda text: print(text, flush=True))
