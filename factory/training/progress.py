"""What a training reports while it runs, and writes to its log and to TensorBoard."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from factory.files.strict_json import dumps


class Progress:
    """Reports and logs the smoothed loss, the pace and the time left, every 20 steps.

    The log and the board of TensorBoard are in `out`; without it nothing is written.
    """

    def __init__(self, name: str, first: int, steps: int, out: Path | None, report: Callable[[str], None]) -> None:
        self.name, self.first, self.steps, self.out, self.report = name, first, steps, out, report
        self.board = None if out is None else SummaryWriter(str(out / "board"), purge_step=first)
        self.began, self.loss = time.monotonic(), math.nan

    def close(self) -> None:
        """End the board."""
        if self.board is not None:
            self.board.close()

    def advance(self, done: int, loss: float) -> None:
        """The loss of one more step."""
        self.loss = loss if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * loss
        if done % 20 and done != self.steps:
            return
        pace = (time.monotonic() - self.began) / (done - self.first)
        left = pace * (self.steps - done) / 60
        self.report(
            f"{self.name} step {done}/{self.steps}  loss {self.loss:.4f}  {pace:.2f} s/step  {left:.1f} min left"
        )
        if self.board is not None:
            self.board.add_scalar("loss", self.loss, done)
        self._write({"step": done, "loss": round(self.loss, 5), "seconds_per_step": round(pace, 3)})

    def tell(self, done: int, figures: dict[str, float], sheet: Image.Image) -> None:
        """Figures and a sample sheet."""
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(name, value, done)
            self.board.add_image("samples", np.asarray(sheet.convert("RGB")), done, dataformats="HWC")
        if figures:
            told = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            self.report(f"{self.name} step {done}/{self.steps}  {told}")
            self._write({"step": done, **{name: round(value, 5) for name, value in figures.items()}})

    def _write(self, row: dict[str, float]) -> None:
        if self.out is not None:
            with (self.out / "log.jsonl").open("a") as log:
                log.write(dumps(row) + "\n")
