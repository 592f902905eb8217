"""One training run of a grounder, from options."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from factory.dataset.storage import Store
from factory.files.paths import local_path
from factory.grounder.data import OracleDataset
from factory.hf_logging import quiet_model_libraries

LEARNING_RATES = {"guided": 1e-3, "paper": 3e-4, "paper-cfg": 3e-4}
PASSES, LEAST_STEPS = 5, 300
"""How often training shows each sample unless steps are given: after twenty passes the module had learnt the detector's
mistakes, and was worse on unseen classes by up to 17 points (docs/log.md)."""


MOST_BATCH = 32
"""Samples of a step unless told otherwise, where memory holds so many."""


@dataclass(frozen=True)
class GrounderTraining:
    """What to train on what, and where to.

    Without `steps`, PASSES over the samples and LEAST_STEPS at least; without `batch`, that of the checkpoint which is
    resumed, or MOST_BATCH as far as memory holds them. `device` may be "auto".
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
        """The same run, with a batch that parts evenly over so many devices unless one is given."""
        if self.batch is not None or devices == 1:
            return self
        return replace(self, batch=max(1, MOST_BATCH // devices) * devices)


def train_here(run: GrounderTraining, report: Callable[[str], None] = lambda text: print(text, flush=True)) -> Path:
    """Train in this process, resuming what lies in `run.out`; return the folder of the finished grounder."""
    import torch

    quiet_model_libraries()
    from factory.grounder.memory import fitting_batch
    from factory.grounder.training import HELD_OUT, GrounderOptions, GrounderTask
    from factory.training.devices import chosen_device
    from factory.training.loop import TrainOptions, saved_options, train

    out, device = local_path(run.out, "--out"), chosen_device(run.device)
    if run.threads:
        torch.set_num_threads(run.threads)
    sets = [OracleDataset(Store(address)) for address in run.oracles]
    task = GrounderTask(sets, GrounderOptions(module=run.module), device, run.steps or 0)
    batch = run.batch or saved_options(out).get("batch") or fitting_batch(task, MOST_BATCH, report)
    samples = sum(len(one.keys(False, HELD_OUT)) for one in sets)
    steps = run.steps or max(LEAST_STEPS, PASSES * samples // batch)
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
