"""Train a grounder from options."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from factory.dataset.storage import Store
from factory.files.paths import check_writable_folder, local_path
from factory.grounder.data import OracleDataset
from factory.hf_logging import quiet_model_libraries

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


def train_here(run: GrounderTraining, report: Callable[[str], None] = _log.info) -> Path:
    """Train in this process, resuming from `run.out` if possible; return the folder of the finished grounder."""
    import torch

    quiet_model_libraries()
    from factory.grounder.memory import fitting_batch
    from factory.grounder.training import HELD_OUT, GrounderOptions, GrounderTask
    from factory.training.checkpoint import saved_options
    from factory.training.devices import chosen_device
    from factory.training.loop import TrainOptions, train

    out, device = local_path(run.out, "--out"), chosen_device(run.device)
    check_writable_folder(out, "--out")
    if run.threads:
        torch.set_num_threads(run.threads)
    datasets = [OracleDataset(Store(address)) for address in run.oracles]
    task = GrounderTask(datasets, GrounderOptions(module=run.module), device, run.steps or 0)
    batch = run.batch or saved_options(out).get("batch") or fitting_batch(task, MAX_BATCH, report)
    samples = sum(len(dataset.keys(False, HELD_OUT)) for dataset in datasets)
    steps = run.steps or max(MIN_STEPS, PASSES * samples // batch)
    task.config = replace(task.config, steps=steps)
    options = TrainOptions(
        steps=steps,
        batch=batch,
        learning_rate=LEARNING_RATES[run.module] if run.learning_rate is None else run.learning_rate,
        seed=run.seed,
        device=device,
        ema_decay=0.99,
        weight_decay=0.01,
        start=run.start,
    )
    return train(task, options, out, report)
