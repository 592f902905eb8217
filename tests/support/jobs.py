"""Jobs for testing the engine without models: they sleep, fail, hang or crash as configured."""

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
    """Each shard takes `seconds` to generate and `writing` to write, and records its steps as files in `folder`.

    `failing` shards raise, `hanging` ones never return, `dying` ones kill their worker the first time and `poisonous`
    ones every time; those in `dying_late` kill it while they are written. `start` is what opening a worker or detector
    does: `hang`, `die` or `raise`. Variables in `noting` are written to the folder when a worker opens.
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
        """Loads nothing; writes the variables."""
        self._start()
        for name in (*self.noting, "MALLOC_ARENA_MAX"):
            if name in os.environ:
                Path(self.folder, f"{name}-{device}").write_text(os.environ[name])
        return replace(self, device=device)

    def open_detector(self, device: str) -> Any:
        """Loads nothing."""
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
        """Sleep, fail, hang or crash."""
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

    def waiting(self) -> str:
        """Never waits."""
        return ""


class RefusingJob(SleepingJob):
    """Raises UserError when it is opened, as for a wrong model folder."""

    def open(self, device: str, detector: Any | None) -> Producer:
        """Raises UserError."""
        raise UserError("the model folder x is not a pipeline")


def _mark(folder: str, name: str) -> None:
    with Path(folder, name).open("a") as stream:
        stream.write("x")


@dataclass(frozen=True)
class AskingJob(SleepingJob):
    """Each shard calls the detector pool once; at the first call, the detector worker dies, or hangs forever."""

    hangs: bool = False
    loading: float = 0.0

    def open(self, device: str, detector: Any | None) -> Any:
        """Pass the pool to the producer."""
        return AskingProducer(self, detector)

    def open_detector(self, device: str) -> Any:
        """Load for some seconds."""
        time.sleep(self.loading)
        return super().open_detector(device)

    def detect(self, images: Any, classes: Any = None) -> list[int]:
        """The process id of the detector worker, once per image."""
        if not Path(self.folder, "detector-died").exists():
            _mark(self.folder, "detector-died")
            if self.hangs:
                time.sleep(3600)
            os.kill(os.getpid(), 9)
        return [os.getpid() for _ in images]


class AskingProducer:
    """Accepts as many samples as the detector returns results."""

    def __init__(self, job: AskingJob, detector: Any) -> None:
        self._job, self._detector = job, detector

    def generate(self, shard: int, progress: Progress) -> int:
        """Run the detector on three images."""
        results = self._detector.detect([shard, shard, shard])
        assert os.getpid() not in results
        return len(results)

    def finish(self, shard: int, content: Any) -> Done:
        """Write only the file."""
        self._job.finish(shard, content)
        return Done(accepted=content, attempts=content)

    def waiting(self) -> str:
        """Never waits."""
        return ""
