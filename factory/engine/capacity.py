"""What a worker asks for and how many fit, as the cluster is now and as it can grow."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from factory.config.sections import EngineRecipe
from factory.errors import UserError

_MOST = 4096
_LEAST_ASKED = 4


@dataclass(frozen=True)
class Share:
    """What one actor asks for; `memory` in bytes, 0 for none in particular."""

    cpus: float
    gpus: float = 0.0
    memory: int = 0

    def fits(self, there: Mapping[str, float]) -> int:
        """How many such actors find room in some resources."""
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        fitting = min((there.get(name, 0) / amount for name, amount in asked.items() if amount), default=_MOST)
        return int(min(fitting, _MOST) + 1e-6)


@dataclass(frozen=True)
class Resources:
    """A cluster's resources by Ray's names, for each machine. `limit` is what all can grow to; None if unknown."""

    nodes: Sequence[Mapping[str, float]]
    scales: bool = False
    limit: Mapping[str, float] | None = None

    def most(self, name: str) -> float:
        """The largest amount that one machine has."""
        return max((node.get(name, 0.0) for node in self.nodes), default=0.0)

    def total(self, name: str) -> float:
        """The amount that all machines have together."""
        return sum(node.get(name, 0.0) for node in self.nodes)


class Capacity:
    """Which share a worker asks for and how many workers to ask for; looked at again while a run goes on."""

    def __init__(self, engine: EngineRecipe, threads: int, memory: int = 0) -> None:
        """`threads` are those of a CPU worker, `memory` its bytes. UserError for GPUs that this machine lacks."""
        self._engine, self._threads = engine, threads
        self._memory = int(engine.memory_per_worker * 2**30) if engine.memory_per_worker else memory
        self._gpus = engine.gpus_per_worker or 0.0
        gpus = resources().total("GPU") if engine.address is None else sys.maxsize
        if max(engine.gpus_per_worker or 0, engine.gpus_per_detector) > gpus:
            raise UserError(
                f"a worker asks for {engine.gpus_per_worker or 0:g} GPUs (a detector for "
                f"{engine.gpus_per_detector:g}), this machine has {gpus:g}; give --gpus-per-worker 0 to run on the CPU."
            )

    def look(self) -> tuple[Share, int]:
        """(share of a worker, number of workers to ask for), as things are now."""
        return self.judge(resources())

    def judge(self, there: Resources) -> tuple[Share, int]:
        """As `look`, for given resources.

        Where the recipe leaves it open, a worker has a GPU as soon as the cluster has one or can grow one; once it has
        been so it remains so, for a GPU machine that is lost for an hour is no reason to go on with CPUs.
        """
        if self._engine.gpus_per_worker is None and (there.total("GPU") or (there.limit or {}).get("GPU")):
            self._gpus = 1.0
        share = self._share(there)
        fitting = sum(share.fits(node) for node in there.nodes)
        if there.scales:
            # What waits for room is what an autoscaler acts on: ask for all that can come, or for twice what is there.
            fitting = max(fitting, share.fits(there.limit) if there.limit else max(_LEAST_ASKED, 2 * fitting))
        return share, min(_MOST, max(1, fitting))

    def _share(self, there: Resources) -> Share:
        if self._gpus:
            return Share(1, self._gpus)
        share = Share(self._threads, 0, self._memory)
        if self._engine.workers is None or self._engine.memory_per_worker:
            # An estimate must not keep the only worker from starting.
            return replace(share, memory=min(share.memory, int(there.most("memory"))))
        return replace(share, memory=0)


def resources() -> Resources:
    """The resources of the connected cluster; blocks while its head does not answer."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    with contextlib.suppress(Exception):  # Ray's internals, which have no promise of staying and no ray:// form
        from ray._private.state import state
        from ray.experimental.internal_kv import _internal_kv_get

        limit = state.get_max_resources_from_cluster_config()
        scales = limit is not None or bool(_internal_kv_get(b"__autoscaling_status"))
        return Resources(nodes, scales, limit)
    return Resources(nodes)
