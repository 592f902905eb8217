"""The content path as work that an engine can spread: it pickles light, and opens with all models loaded."""

import platform
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from factory.config.plan import Plan, PlannedShard
from factory.config.recipe import Recipe
from factory.dataset.receipts import Receipt, commit, read_receipt
from factory.dataset.storage import Store
from factory.detector.interface import Detector
from factory.engine.interface import Done, Progress
from factory.errors import UserError
from factory.generation.components import load_components
from factory.generation.shard import Produced, produce

LIBRARIES = ("dataset-factory", "torch", "diffusers", "transformers", "numpy", "pillow", "pyarrow", "ray")


class ContentJob:
    """What every worker is sent: the recipe, and where the set lives."""

    def __init__(self, recipe: Recipe, store: Store) -> None:
        self.recipe, self.store = recipe, store

    def open(self, device: str, detector: Detector | None) -> "ContentProducer":
        """Load the models."""
        return ContentProducer(self.recipe, self.store, device, detector)

    def memory(self) -> int:
        """Bytes that a CPU worker is expected to need."""
        from factory.generation.worker_memory import worker_memory

        return worker_memory(self.recipe, detector_in_worker=self.recipe.engine.detectors == 0)

    def open_detector(self, device: str) -> Detector:
        """Load the detector alone."""
        from factory.detector.load import open_detector

        return open_detector(self.recipe, device)


class ContentProducer:
    """Produces shards of one recipe and commits them."""

    def __init__(self, recipe: Recipe, store: Store, device: str, detector: Detector | None = None) -> None:
        self._recipe, self._store, self._device = recipe, store, device
        self._plan = Plan(recipe)
        self._components = load_components(recipe, device, detector)
        self._encoder = ThreadPoolExecutor(recipe.engine.writers, thread_name_prefix="writer")

    def generate(self, shard: int, progress: Progress) -> tuple[PlannedShard, Produced] | Receipt:
        """All but the writing; samples are already being encoded when this returns. Or the receipt that is there."""
        planned = self._plan.shard(shard)
        receipt = self._receipt(shard)
        if receipt is not None and receipt.plan == planned.digest:
            return receipt
        return planned, produce(planned, self._recipe, self._components, self._encoder, progress)

    def _receipt(self, shard: int) -> Receipt | None:
        """What another driver left meanwhile; None also where it is broken, for then it proves nothing."""
        try:
            return read_receipt(self._store, shard)
        except UserError:
            raise
        except ValueError:
            return None

    def finish(self, shard: int, content: Any) -> Done:
        """Wait for the encoder, then commit."""
        if isinstance(content, Receipt):
            return _done(content)
        planned, produced = content
        start = time.perf_counter()
        samples = [job.result() for job in produced.samples]
        produced.seconds["encode"] = round(time.perf_counter() - start, 4)
        about = {
            "seconds": produced.seconds,
            "versions": versions(),
            "worker": {"host": socket.gethostname(), "device": self._device, "machine": platform.machine()},
        }
        tally = produced.tally
        return _done(commit(self._store, planned, samples, tally, self._recipe.fingerprint(), about))


def _done(receipt: Receipt) -> Done:
    return Done(receipt.accepted, receipt.attempts, dict(receipt.rejected), len(receipt.short), dict(receipt.seconds))


def versions() -> dict[str, str]:
    """The libraries that bytes may depend on."""
    result = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            result[name] = "unknown"
    return result
