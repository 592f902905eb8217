"""Options of a training run. Nothing here imports PyTorch, so that invalid options are reported at once."""

import math
from dataclasses import dataclass
from pathlib import Path

from factory.dataset.stored_recipe import RECIPE
from factory.errors import UserError
from factory.files.decode import is_text
from factory.files.paths import check_writable_folder
from factory.training.devices import check_device

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training run. A checkpoint with other options is rejected."""

    steps: int
    batch: int
    learning_rate: float
    seed: int = 0
    device: str = "cpu"
    ema_decay: float = 0.0
    weight_decay: float = 0.01
    checkpoint_every: int = 200
    start: str | None = None
    """Folder of a trained model whose weights the run starts with."""
    optimizer: str = "adamw"
    """`adamw`, or `muon`: see `factory/training/muon.py`."""
    schedule: str = "cosine"
    """`cosine` (one cycle), or `trapezoid`: constant, then linear to zero over the last 40 %."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise UserError(
                f"training requires at least one step and one sample per step, got {self.steps} steps of {self.batch}."
            )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"the seed of a training must be a number from 0 to {2**32 - 1}, got {self.seed}.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate >= 0):
            raise UserError(
                f"the learning rate must be a finite number of at least 0, such as 0.001; got {self.learning_rate}."
            )
        check_device(self.device)


def check_run_folder(out: Path) -> None:
    """UserError if the folder of a training run cannot be written or read again, or is a dataset."""
    check_writable_folder(out, "--out")
    check_writable_folder(out / "model", "--out: the folder")
    if not is_text(str(out)):
        raise UserError(
            f"--out {out} has a name that is not UTF-8, which safetensors and TensorBoard do not support; give another "
            f"folder, or rename it."
        )
    if (out / RECIPE).exists():
        raise UserError(f"--out {out} is a dataset; give another folder for the checkpoints and the trained model.")


def check_start(name: str, start: str | None, out: Path) -> None:
    """UserError if the training `name` in `out` would start from a folder that does not exist.

    A run that is resumed no longer needs its start.
    """
    if start and not (out / CHECKPOINT).exists() and not Path(start).is_dir():
        raise cannot_start(name, Path(start), "there is no such folder")


def cannot_start(name: str, folder: Path, problem: str) -> UserError:
    """The error of a training whose initial weights cannot be loaded from a folder."""
    return UserError(
        f"training of the {name} cannot start from {folder} ({problem}); give the folder of a model that this command "
        f"has trained, or leave out --start."
    )
