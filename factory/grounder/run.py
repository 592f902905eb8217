"""One training run of a grounder, from options: in this process, or on several devices through Ray Train."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.errors import UserError
from factory.grounder.data import OracleSet
from factory.libraries import quiet_model_libraries
from factory.recipe import EngineRecipe
from factory.store import Store

LEARNING_RATES = {"guided": 1e-3, "paper": 3e-4}


@dataclass(frozen=True)
class Run:
    """What to train on what, and where to."""

    oracles: tuple[str, ...]
    out: str
    module: str = "guided"
    steps: int = 1500
    batch: int = 32
    learning_rate: float | None = None
    seed: int = 0
    device: str = "cpu"
    threads: int = 0
    start: str | None = None


def train_here(run: Run, report: Callable[[str], None] = lambda text: print(text, flush=True)) -> Path:
    """Train in this process, resuming what lies in `run.out`; return the folder of the finished grounder."""
    import torch

    quiet_model_libraries()
    from factory.grounder.training import GrounderOptions, GrounderTask
    from factory.training.loop import TrainOptions, train

    if run.threads:
        torch.set_num_threads(run.threads)
    sets = [OracleSet(Store(address)) for address in run.oracles]
    options = TrainOptions(
        steps=run.steps,
        batch=run.batch,
        learning_rate=run.learning_rate or LEARNING_RATES[run.module],
        seed=run.seed,
        device=run.device,
        ema_decay=0.99,
        weight_decay=0.01,
        start=run.start,
    )
    task = GrounderTask(sets, GrounderOptions(module=run.module), run.device, run.steps)
    return train(task, options, Path(run.out), report)


def train_on_several(run: Run, devices: int, engine: EngineRecipe) -> Path:
    """Train on several devices of a Ray cluster, each with its part of every batch.

    All must see `run.out` and the oracle sets under the same names. UserError where the batch cannot be parted.
    """
    if run.batch % devices:
        raise UserError(
            f"a batch of {run.batch} does not part evenly over {devices} devices; choose a multiple for --batch."
        )
    from factory.engine.cluster import connected, resources

    out = Path(run.out).absolute()
    with connected(engine.model_copy(update={"workers": devices + 1}), max(1, run.threads)):
        import ray.train  # reads the environment that `connected` prepares
        from ray.train.torch import TorchTrainer

        gpus = resources()[1] >= devices
        trainer = TorchTrainer(
            _train_part,
            train_loop_config={"run": run, "gpus": gpus},
            scaling_config=ray.train.ScalingConfig(num_workers=devices, use_gpu=gpus),
            run_config=ray.train.RunConfig(name="train", storage_path=str(out / "ray")),
        )
        trainer.fit()
    return out / "model"


def _train_part(config: dict[str, Any]) -> None:
    """One process of several: the same run, on its own device; the first one writes."""
    from dataclasses import replace

    run: Run = config["run"]
    device = "cpu"
    if config["gpus"]:
        import ray.train.torch

        device = str(ray.train.torch.get_device())
    train_here(replace(run, device=device))


def absolute(oracles: Sequence[str]) -> tuple[str, ...]:
    """Addresses that mean the same in every process."""
    stores = [Store(address) for address in oracles]
    return tuple(store.address if store.folder is None else str(store.folder) for store in stores)
