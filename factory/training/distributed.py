"""One training run on several devices, through Ray Train."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from factory.config.sections import EngineRecipe
from factory.errors import UserError


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

    `run.out` and the data must have the same paths on all machines. UserError if the batch cannot be divided, or if a
    process raises one.
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
                trainer.fit()
        except ray.train.TrainingFailedError as error:
            failures = getattr(error, "worker_failures", {}).values()
            message = next((failure for failure in failures if isinstance(failure, UserError)), None)
            if message is None:
                raise
            raise UserError(str(message)) from None
    return out / "model"


def _train_process(config: dict[str, Any]) -> None:
    """Run in each process: the same training, on the device of the process. Only the first process writes."""
    device = "cpu"
    if config["gpus"]:
        import ray.train.torch

        device = str(ray.train.torch.get_device())
    config["train_here"](replace(config["run"], device=device))
