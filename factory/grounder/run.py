"""One training run of a grounder, from options."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from factory.grounder.data import OracleSet
from factory.libraries import quiet_model_libraries
from factory.store import Store

LEARNING_RATES = {"guided": 1e-3, "paper": 3e-4}
PASSES, LEAST_STEPS = 5, 300
"""How often training shows each sample unless steps are given: after twenty passes the module had learnt the detector's
mistakes, and was worse on unseen classes by up to 17 points (docs/log.md)."""


@dataclass(frozen=True)
class Run:
    """What to train on what, and where to; without `steps`, PASSES over the samples and LEAST_STEPS at least."""

    oracles: tuple[str, ...]
    out: str
    module: str = "guided"
    steps: int | None = None
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
    from factory.grounder.training import HELD_OUT, GrounderOptions, GrounderTask
    from factory.training.loop import TrainOptions, train

    if run.threads:
        torch.set_num_threads(run.threads)
    sets = [OracleSet(Store(address)) for address in run.oracles]
    steps = run.steps or max(LEAST_STEPS, PASSES * sum(len(one.keys(False, HELD_OUT)) for one in sets) // run.batch)
    options = TrainOptions(
        steps=steps,
        batch=run.batch,
        learning_rate=run.learning_rate or LEARNING_RATES[run.module],
        seed=run.seed,
        device=run.device,
        ema_decay=0.99,
        weight_decay=0.01,
        start=run.start,
    )
    task = GrounderTask(sets, GrounderOptions(module=run.module), run.device, steps)
    return train(task, options, Path(run.out), report)
