"""Work for the engine that needs no model: it sleeps, fails, hangs or dies as its fields say."""

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from factory.engine.interface import Done, Producer, Progress
from factory.errors import UserError


@dataclass(frozen=True)
class SleepingJob:
    """Each shard takes `seconds` to generate and `writing` to write, and leaves a file in `folder` that names it.

    `failing` shards raise, `hanging` ones never return, `dying` ones kill their worker the first time and `poisonous`
    ones each time; those in `dying_late` kill it when they are written. `start` is what opening does: `hang` or `die`,
    and the same with a detector. Variables in `noting` are written to the folder when a worker opens.
    """

    folder: str
    seconds: float = 0.0
    writing: float = 0.0
    failing: frozenset[int] = frozenset()
    hanging: frozenset[int] = frozenset()
    dying: frozenset[int] = frozenset()
    poisonous: frozenset[int] = frozenset()
    dying_late: frozenset[int] = frozenset()
    start: str = ""
    device: str = ""
    noting: tuple[str, ...] = ()

    def open(self, device: str, detector: Any | None) -> Producer:
        """There is nothing to load."""
        self._start()
        for name in (*self.noting, "MALLOC_ARENA_MAX"):
            if name in os.environ:
                Path(self.folder, f"{name}-{device}").write_text(os.environ[name])
        return replace(self, device=device)

    def open_detector(self, device: str) -> Any:
        """There is nothing to load."""
        self._start()
        return self

    def _start(self) -> None:
        if self.start == "hang":
            time.sleep(3600)
        if self.start == "die":
            os.kill(os.getpid(), 9)
        if self.start == "raise":
            raise RuntimeError("the weights are of another network")

    def generate(self, shard: int, progress: Progress) -> float:
        """Sleep, or what the shard is told to do."""
        start = time.monotonic()
        _mark(self.folder, f"tried-{shard}")
        if shard in self.dying and not Path(self.folder, f"died-{shard}").exists():
            _mark(self.folder, f"died-{shard}")
            os.kill(os.getpid(), 9)
        if shard in self.poisonous:
            print(f"shard {shard} takes all memory", file=sys.stderr, flush=True)
            time.sleep(0.5)
            os.kill(os.getpid(), 9)
        if shard in self.failing:
            raise RuntimeError(f"shard {shard} always fails")
        time.sleep(3600 if shard in self.hanging else self.seconds)
        progress(1, ())
        return start

    def finish(self, shard: int, content: Any) -> Done:
        """Sleep, then write the file."""
        time.sleep(self.writing if not self.dying_late or shard in self.dying_late else 0)
        if shard in self.dying_late and not Path(self.folder, f"died-{shard}").exists():
            _mark(self.folder, f"died-{shard}")
            os.kill(os.getpid(), 9)
        _mark(self.folder, f"done-{shard}")
        _mark(self.folder, f"on-{self.device}")
        return Done(accepted=1, attempts=1, seconds={"generate": self.seconds})


class RefusingJob(SleepingJob):
    """Finds, when it is opened, that what the user gave is no model."""

    def open(self, device: str, detector: Any | None) -> Producer:
        """Raises UserError."""
        raise UserError("the model folder x is no pipeline")


def _mark(folder: str, name: str) -> None:
    with Path(folder, name).open("a") as stream:
        stream.write("x")


@dataclass(frozen=True)
class AskingJob(SleepingJob):
    """Each shard asks the detector pool once; the pool's worker dies at its first question."""

    def open(self, device: str, detector: Any | None) -> Any:
        """Keep hold of the pool."""
        return AskingProducer(self, detector)

    def detect(self, images: Any) -> list[int]:
        """How many images there were in each batch of one."""
        if not Path(self.folder, "detector-died").exists():
            _mark(self.folder, "detector-died")
            os.kill(os.getpid(), 9)
        return [os.getpid() for _ in images]


class AskingProducer:
    """Accepts as many samples as the detector answers for."""

    def __init__(self, job: AskingJob, detector: Any) -> None:
        self._job, self._detector = job, detector

    def generate(self, shard: int, progress: Progress) -> int:
        """Ask about three images."""
        answers = self._detector.detect([shard, shard, shard])
        assert os.getpid() not in answers
        return len(answers)

    def finish(self, shard: int, content: Any) -> Done:
        """Nothing to write but the mark."""
        self._job.finish(shard, content)
        return Done(accepted=content, attempts=content)
