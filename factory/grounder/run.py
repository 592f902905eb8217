"""Train a grounder from options."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from factory.dataset.storage import Store
from factory.files.paths import local_path
from factory.grounder.data import OracleDataset
from factory.grounder.folder import read_grounder_config
from factory.grounder.shared_recipe import check_same_kind
from factory.hf_logging import quiet_model_libraries
from factory.training.devices import check_device_name, chosen_device
from factory.training.memory import enough_memory
from factory.training.options import CHECKPOINT, TrainOptions, cannot_start, check_run_folder, check_start

_log = logging.getLogger(__name__)

LEARNING_RATES = {"guided": 1e-3, "paper": 3e-4, "paper-cfg": 3e-4}
PASSES, MIN_STEPS = 5, 300
"""Default number of passes over the samples, and minimum number of steps. After twenty passes, the module had
learned the mistakes of the detector and lost up to 17 points on unseen classes (docs/log.md)."""

MAX_BATCH = 32
"""Default batch size, if it fits into memory."""


@dataclass(frozen=True)
class GrounderTraining:
    """Options of a training run.

    The default of `steps` is PASSES passes over the samples, but at least MIN_STEPS. The default of `batch` is that of
    the resumed checkpoint, or else MAX_BATCH or the largest power of two that fits into memory. `device` may be "auto".
    """

    oracles: tuple[str, ...]
    out: str
    module: str = "guided"
    steps: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    start: str | None = None

    def on_several(self, devices: int) -> "GrounderTraining":
        """The same run with a batch size that divides evenly among the devices, unless one is given."""
        if self.batch is not None or devices == 1:
            return self
        return replace(self, batch=max(1, MAX_BATCH // devices) * devices)


def check(run: GrounderTraining) -> list[OracleDataset]:
    """The datasets of a run. UserError if they or an option are invalid, found in a second, without PyTorch."""
    out = local_path(run.out, "--out")
    check_run_folder(out)
    check_device_name(run.device)
    _options(run)
    if run.start is not None:
        check_start("grounder", run.start, out)
        _check_kind(run.module, Path(run.start), out)
    datasets = [OracleDataset(Store(address)) for address in run.oracles]
    check_same_kind(datasets)
    return datasets


def train_here(run: GrounderTraining, report: Callable[[str], None] = _log.info) -> Path:
    """Train in this process, resuming from `run.out` if possible; return the folder of the finished grounder."""
    datasets = check(run)

    import torch

    quiet_model_libraries()
    from factory.grounder.batch_size import fitting_batch
    from factory.grounder.training import HELD_OUT, GrounderOptions, GrounderTask
    from factory.training.checkpoint import saved_options
    from factory.training.loop import train

    out, device = local_path(run.out, "--out"), chosen_device(run.device)
    if run.threads:
        torch.set_num_threads(run.threads)
    with enough_memory("a training step with one sample", "train on a larger one"):
        task = GrounderTask(datasets, GrounderOptions(module=run.module), device, run.steps or 0)
        batch = run.batch or saved_options(out).get("batch") or fitting_batch(task, MAX_BATCH, report)
    samples = sum(len(dataset.keys(False, HELD_OUT)) for dataset in datasets)
    steps = run.steps or max(MIN_STEPS, PASSES * samples // batch)
    task.config = replace(task.config, steps=steps)
    return train(task, replace(_options(run), steps=steps, batch=batch, device=device), out, report)


def _options(run: GrounderTraining) -> TrainOptions:
    """The options of the training loop, with the least of steps and batch where the run leaves them open."""
    return TrainOptions(
        steps=MIN_STEPS if run.steps is None else run.steps,
        batch=1 if run.batch is None else run.batch,
        learning_rate=LEARNING_RATES[run.module] if run.learning_rate is None else run.learning_rate,
        seed=run.seed,
        ema_decay=0.99,
        weight_decay=0.01,
        start=run.start,
    )


def _check_kind(module: str, start: Path, out: Path) -> None:
    """UserError unless the initial weights are those of a grounder with this module."""
    if (out / CHECKPOINT).exists():
        return
    stored = read_grounder_config(start).module
    if stored != module:
        raise cannot_start("grounder", start, f"its module is {stored}, but this run trains {module}")
