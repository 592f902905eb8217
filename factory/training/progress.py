"""Progress of a training run: messages, `log.jsonl` and TensorBoard."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from factory.files.strict_json import dumps

_MAX_SILENCE = 30.0
"""Seconds. A step of Mask2Former on a CPU can take this long."""


class Progress:
    """Reports and logs the smoothed loss, the seconds per step and the time left, every 20 steps or 30 seconds.

    The log and the TensorBoard files are written to `out`; nothing is written if it is None.
    """

    def __init__(self, name: str, first: int, steps: int, out: Path | None, report: Callable[[str], None]) -> None:
        self.name, self.first, self.steps, self.out, self.report = name, first, steps, out, report
        self.board = None if out is None else SummaryWriter(str(out / "board"), purge_step=first)
        self.started, self.loss = time.monotonic(), math.nan
        self.reported = self.started

    def close(self) -> None:
        """Close the TensorBoard writer."""
        if self.board is not None:
            self.board.close()

    def advance(self, done: int, loss: float) -> None:
        """Add the loss of a step."""
        self.loss = loss if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * loss
        now = time.monotonic()
        if done % 20 and done != self.steps and now - self.reported < _MAX_SILENCE:
            return
        self.reported = now
        seconds_per_step = (now - self.started) / (done - self.first)
        minutes_left = seconds_per_step * (self.steps - done) / 60
        self.report(
            f"{self.name} step {done}/{self.steps}  loss {self.loss:.4f}  {seconds_per_step:.2f} s/step  "
            f"{minutes_left:.1f} min left"
        )
        if self.board is not None:
            self.board.add_scalar("loss", self.loss, done)
        self._write({"step": done, "loss": round(self.loss, 5), "seconds_per_step": round(seconds_per_step, 3)})

    def log_metrics(self, done: int, metrics: dict[str, float], sheet: Image.Image) -> None:
        """Log metrics and a sample sheet."""
        if self.board is not None:
            for name, value in metrics.items():
                self.board.add_scalar(name, value, done)
            self.board.add_image("samples", np.asarray(sheet.convert("RGB")), done, dataformats="HWC")
        if metrics:
            listed = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            self.report(f"{self.name} step {done}/{self.steps}  {listed}")
            self._write({"step": done, **{name: round(value, 5) for name, value in metrics.items()}})

    def _write(self, entry: dict[str, float]) -> None:
        if self.out is not None:
            with (self.out / "log.jsonl").open("a") as log:
                log.write(dumps(entry) + "\n")
