"""One training run on several devices, through Ray Train."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from factory.config.sections import EngineRecipe
from factory.errors import UserError
from factory.signals import stop_requests


class DistributedRun(Protocol):
    """The options of a run that are needed here. Must be a dataclass: each process gets a copy with its own device."""

    @property
    def out(self) -> str:
        """The folder of the run."""
        ...

    @property
    def batch(self) -> int | None:
        """Samples per step over all devices. Required for several devices."""
        ...

    @property
    def threads(self) -> int:
        """CPU threads per process; 0 for all."""
        ...


def train_on_several(
    train_here: Callable[[Any], Path], run: DistributedRun, devices: int, engine: EngineRecipe
) -> Path:
    """Call `train_here(run)` in `devices` processes of a Ray cluster, each with its part of every batch.

    All must see `run.out` and the data under the same names. KeyboardInterrupt after a signal, when the checkpoint of
    the step under way is written. UserError where the batch cannot be parted, and what a
    process says as one.
    """
    if run.batch is None or run.batch % devices:
        raise UserError(
            f"--batch {run.batch} is not divisible by the {devices} devices; choose a multiple of {devices}."
        )
    from factory.engine.capacity import resources
    from factory.engine.cluster import connected, quiet

    out = Path(run.out).absolute()
    with connected(engine.model_copy(update={"workers": devices + 1}), max(1, run.threads)):
        import ray.train  # imported here because it reads the environment that `connected` prepares
        from ray.train.torch import TorchTrainer

        gpus = resources().total("GPU") >= devices
        trainer = TorchTrainer(
            _train_process,
            train_loop_config={"train_here": train_here, "run": run, "gpus": gpus},
            scaling_config=ray.train.ScalingConfig(num_workers=devices, use_gpu=gpus),
            run_config=ray.train.RunConfig(name="train", storage_path=str(out / "ray")),
        )
        try:
            with quiet():
                _fit(trainer, out)
        except ray.train.TrainingFailedError as error:
            failures = getattr(error, "worker_failures", {}).values()
            message = next((failure for failure in failures if isinstance(failure, UserError)), None)
            if message is None:
                raise
            raise UserError(str(message)) from None
    return out / "model"


def _fit(trainer: Any, folder: Path) -> None:
    """Train to the end; at the first SIGINT or SIGTERM to the end of a step and its checkpoint, then KeyboardInterrupt.

    The processes learn it from a file in the run's folder, for they get no signal. A second signal interrupts at once.
    In a thread of its own, for in the main one Ray would take SIGINT for itself and end them in the middle of a step.
    """
    from factory.training.loop import STOP

    stop, fitted = folder / STOP, Future[None]()
    stop.unlink(missing_ok=True)

    def fit() -> None:
        try:
            fitted.set_result(trainer.fit())
        except BaseException as error:
            fitted.set_exception(error)

    with stop_requests() as stopping:
        threading.Thread(target=fit, name="train", daemon=True).start()
        while not wait([fitted], timeout=0.2).done:
            if stopping() and not stop.exists():
                folder.mkdir(parents=True, exist_ok=True)
                stop.touch()
        fitted.result()
        if stopping():
            stop.unlink(missing_ok=True)
            raise KeyboardInterrupt


def _train_process(config: dict[str, Any]) -> None:
    """One process of several: the same run, on its own device; the first one writes."""
    device = "cpu"
    if config["gpus"]:
        import ray.train.torch

        device = str(ray.train.torch.get_device())
    # Who was asked to stop has left a checkpoint; to Ray that is an end and no failure.
    with suppress(KeyboardInterrupt):
        config["train_here"](replace(config["run"], device=device))
