"""A program that trains on two devices through Ray Train until it is stopped: `... probe OUT`.

Ray sends `train_here` by value to processes that do not have this repository in their path.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.cli import main

ROOT = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class Run:
    """A training as `train_on_several` expects it."""

    out: str
    batch: int = 4
    threads: int = 1
    device: str = "cpu"


def train_here(run: Any, root: str = ROOT) -> Path:
    """A training of many slow steps, which leaves a file when the first one begins."""
    sys.path.insert(0, root)
    from torch import Tensor

    from factory.training.loop import train
    from factory.training.options import TrainOptions
    from tests.support.linear_task import LinearTask

    class Slow(LinearTask):
        def loss(self, step: int, batch: int, seed: int) -> Tensor:
            time.sleep(0.02)
            Path(run.out, "started").touch()
            return super().loss(step, batch, seed)

    return train(Slow(), TrainOptions(100_000, 4, 1e-2, checkpoint_every=50_000), Path(run.out), lambda text: None)


@main.app.command()
def probe(out: str) -> None:
    """Train on two devices."""
    from factory.config.sections import EngineRecipe
    from factory.training.distributed import train_on_several

    train_on_several(train_here, Run(out), 2, EngineRecipe())


if __name__ == "__main__":
    main.run()
