"""The generation of shards as a job for the engine; a worker loads the models when it opens the job."""

import logging
import os
import platform
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from factory import log_format, metrics
from factory.config.plan import Plan, PlannedShard
from factory.config.recipe import Recipe
from factory.dataset.encode import EncodedSample
from factory.dataset.receipts import CorruptReceiptError, Receipt, commit, read_receipt
from factory.dataset.storage import ConflictError, Store
from factory.dataset.stored_recipe import RECIPE
from factory.detector.interface import Detector
from factory.engine.interface import Done, Progress
from factory.errors import GpuError, UserError, counted
from factory.generation.components import load_components
from factory.generation.shard import Produced, produce

_log = logging.getLogger(__name__)
_APPEARS = 60.0
"""Seconds after which a file that another machine has written must be visible: network file systems cache."""

LIBRARIES = ("dataset-factory", "torch", "diffusers", "transformers", "numpy", "pillow", "pyarrow", "ray")


class ShardJob:
    """Sent to every worker: the recipe and the store of the dataset."""

    def __init__(self, recipe: Recipe, store: Store) -> None:
        self.recipe, self.store = recipe, store

    def open(self, device: str, detector: Detector | None) -> "ShardProducer":
        """Load the models."""
        from factory.generator.memory import loading

        log_format.configure()
        _check_gpu(device)
        _check_folder(self.store)
        with loading(f"the models of {self.recipe.generator.model}"):
            return ShardProducer(self.recipe, self.store, device, detector)

    def memory(self) -> int:
        """The estimated memory of a CPU worker in bytes."""
        from factory.generation.worker_memory import worker_memory

        return worker_memory(self.recipe, detector_in_worker=self.recipe.engine.detectors == 0)

    def open_detector(self, device: str) -> Detector:
        """Load only the detector."""
        from factory.detector.load import open_detector
        from factory.generator.memory import loading

        _check_gpu(device)
        with loading(f"the detector {self.recipe.masks.detector}"):
            return open_detector(self.recipe, device)


def _check_folder(store: Store) -> None:
    """UserError if this host does not see the dataset in a folder: its shards would be written to another disk."""
    end = time.monotonic() + _APPEARS
    while store.folder is not None and store.get(RECIPE) is None:
        if time.monotonic() > end:
            raise UserError(
                f"{socket.gethostname()} does not see the {RECIPE} that the driver has written to {store.address}; "
                f"give a bucket, or a folder that all machines of the cluster share under the same path."
            )
        time.sleep(0.5)


def _check_gpu(device: str) -> None:
    """GpuError if Ray gave this worker a GPU that torch cannot use."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise GpuError(
            f"{socket.gethostname()} has a GPU, but PyTorch {torch.__version__} cannot use it, because its build and "
            f"the GPU driver do not match; install a matching one, or give --gpus-per-worker 0 to generate on the CPU."
        )


class ShardProducer:
    """Produces shards of one recipe and commits them."""

    def __init__(self, recipe: Recipe, store: Store, device: str, detector: Detector | None = None) -> None:
        self._recipe, self._store, self._device = recipe, store, device
        self._plan = Plan(recipe)
        start = time.monotonic()
        self._components = load_components(recipe, device, detector)
        _log.info("Models loaded on %s in %.1f s.", device, time.monotonic() - start)
        self._encoder = ThreadPoolExecutor(recipe.engine.writers, thread_name_prefix="writer")

    def generate(self, shard: int, progress: Progress) -> tuple[PlannedShard, Produced] | Receipt:
        """Generate the samples and start encoding them; if the shard already exists, return its receipt."""
        planned = self._plan.shard(shard)
        receipt = self._receipt(shard)
        if receipt is not None and receipt.plan == planned.digest:
            return receipt
        return planned, produce(planned, self._recipe, self._components, self._encoder, progress)

    def _receipt(self, shard: int) -> Receipt | None:
        """The receipt that another driver may have written meanwhile; None if there is none or it is corrupt."""
        try:
            return read_receipt(self._store, shard)
        except CorruptReceiptError:
            return None

    def finish(self, shard: int, content: Any) -> Done:
        """Wait for the encoder, then commit the shard."""
        if isinstance(content, Receipt):
            return _done(content)
        planned, produced = content
        start = time.perf_counter()
        samples = [future.result() for future in produced.samples]
        produced.seconds["encode"] = round(time.perf_counter() - start, 4)
        run_info = {
            "seconds": produced.seconds,
            "versions": versions(),
            "worker": {
                "host": socket.gethostname(),
                "device": self._device,
                "processor": processor(self._device),
                "pid": str(os.getpid()),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        }
        # Before the receipt: a resumed run does not produce a finished shard again.
        produced.rejected.save(self._store, shard)
        return _done(self._commit(planned, samples, produced, run_info))

    def waiting(self) -> str:
        """A message while the store does not respond to this worker."""
        return self._store.trouble or ""

    def _commit(
        self,
        planned: PlannedShard,
        samples: list[EncodedSample],
        produced: Produced,
        run_info: dict[str, dict[str, Any]],
    ) -> Receipt:
        """Commit the shard and record its metrics."""
        dataset, start = self._store.address, time.perf_counter()
        try:
            receipt = commit(self._store, planned, samples, produced.tally, self._recipe.fingerprint(), run_info)
        except ConflictError:
            metrics.CONFLICTS.add(1, dataset)
            raise
        metrics.COMMIT_SECONDS.observe(time.perf_counter() - start, dataset)
        metrics.BYTES.add(receipt.tar.bytes + receipt.manifest.bytes, dataset)
        fields = {"dataset": dataset, "shard": receipt.shard, "attempts": receipt.attempts, "seconds": produced.seconds}
        size = counted(receipt.accepted, "sample")
        _log.info("Committed shard %d: %s.", receipt.shard, size, extra={"fields": fields})
        return receipt


def _done(receipt: Receipt) -> Done:
    return Done(receipt.accepted, receipt.attempts, dict(receipt.rejected), len(receipt.short), dict(receipt.seconds))


def processor(device: str) -> str:
    """The GPU model, or the instruction set of PyTorch's CPU kernels, on which the bytes depend as on `versions`."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def versions() -> dict[str, str]:
    """The versions of the libraries that can affect the bytes of a shard."""
    result = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            result[name] = "unknown"
    return result
