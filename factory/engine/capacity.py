"""Resources of one worker, and how many workers fit into the cluster, now and after it scales up."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from factory.config.sections import EngineRecipe
from factory.errors import UserError

_MAX_WORKERS = 4096
_NODE_GROUP = "ray.io/node-group"
"""Ray's label of a node that an autoscaler or KubeRay has added: the name of its group."""
_MIN_SCALE_UP = 4
"""Workers to request from an autoscaling cluster that has room for none yet and does not report its maximum size."""


@dataclass(frozen=True)
class ResourceRequest:
    """The resources that one actor requests; `memory` is in bytes, 0 requests none."""

    cpus: float
    gpus: float = 0.0
    memory: int = 0

    def fits(self, available: Mapping[str, float]) -> int:
        """How many such actors fit into the available resources."""
        requested = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        ratios = (available.get(name, 0) / amount for name, amount in requested.items() if amount)
        # 0.3 / 0.1 is slightly below 3.
        return int(min(min(ratios, default=_MAX_WORKERS), _MAX_WORKERS) + 1e-6)


@dataclass(frozen=True)
class ClusterResources:
    """The resources of a cluster per node, under Ray's names. `limit` is what it can scale up to; None if unknown.

    `ids` identify the nodes.
    """

    nodes: Sequence[Mapping[str, float]]
    scales: bool = False
    limit: Mapping[str, float] | None = None
    ids: Sequence[str] = ()

    @property
    def largest_memory(self) -> int:
        """The memory of the node with the most memory, in bytes."""
        return int(max((node.get("memory", 0.0) for node in self.nodes), default=0.0))

    @property
    def cpus(self) -> float:
        """The number of CPUs of all nodes."""
        return sum(node.get("CPU", 0.0) for node in self.nodes)

    @property
    def gpus(self) -> float:
        """The number of GPUs of all nodes."""
        return sum(node.get("GPU", 0.0) for node in self.nodes)


class Capacity:
    """Computes the resources that a worker requests, and the number of workers; evaluated repeatedly in a run."""

    def __init__(self, engine: EngineRecipe, threads: int, memory: int = 0, detectors: int = 0) -> None:
        """`threads` and `memory` (bytes) are those of a CPU worker; `detectors` are created before the workers.

        UserError if Ray runs on this machine alone and has found too few GPUs.
        """
        self._engine, self._threads = engine, threads
        self._memory = int(engine.memory_per_worker * 2**30) if engine.memory_per_worker else memory
        self._gpus = engine.gpus_per_worker or 0.0
        self.nodes: Sequence[str] = ()
        """The nodes that were running when `current` was last called."""
        if engine.address is None:
            check_gpus(engine, detectors, cluster_resources().gpus)

    def current(self) -> tuple[ResourceRequest, int]:
        """(resources of a worker, number of workers to request) for the cluster as it is now."""
        cluster = cluster_resources()
        self.nodes = cluster.ids
        return self.for_resources(cluster)

    def for_resources(self, cluster: ClusterResources) -> tuple[ResourceRequest, int]:
        """As `current`, for the given resources.

        Unless the recipe specifies it, workers use GPUs as soon as the cluster has one or can scale up to one, and
        continue to do so: if the only GPU node is lost for an hour, waiting is better than continuing on CPUs.
        """
        if self._engine.gpus_per_worker is None and (cluster.gpus or (cluster.limit or {}).get("GPU")):
            self._gpus = 1.0
        request = self._request(cluster)
        fitting = sum(request.fits(node) for node in cluster.nodes)
        if cluster.scales:
            # An autoscaler adds nodes for pending actors: request its maximum, or twice the current size if it is
            # unknown.
            fitting = max(fitting, request.fits(cluster.limit) if cluster.limit else max(_MIN_SCALE_UP, 2 * fitting))
        return request, min(_MAX_WORKERS, max(1, fitting))

    def _request(self, cluster: ClusterResources) -> ResourceRequest:
        if self._gpus:
            return ResourceRequest(1, self._gpus)
        request = ResourceRequest(self._threads, 0, self._memory)
        if self._engine.workers is None or self._engine.memory_per_worker:
            # The memory is an estimate; it is capped, so that a high estimate does not keep the only worker from
            # starting.
            return replace(request, memory=min(request.memory, cluster.largest_memory))
        return replace(request, memory=0)


def check_gpus(engine: EngineRecipe, detectors: int, gpus: float) -> None:
    """UserError if a machine with this many GPUs cannot run a worker in addition to `detectors`."""
    has = f"this machine has {gpus:g}"
    if engine.gpus_per_worker is not None and engine.gpus_per_worker > gpus:
        raise UserError(
            f"a worker requires {_gpus(engine.gpus_per_worker)}, but {has}; give --gpus-per-worker 0 (in a recipe, "
            f"engine.gpus_per_worker) to run on CPUs, or the --address of a cluster with GPUs."
        )
    if detectors and engine.gpus_per_detector > gpus:
        raise UserError(
            f"a detector requires {_gpus(engine.gpus_per_detector)}, but {has}; give --gpus-per-detector 0 (in a "
            f"recipe, engine.gpus_per_detector) to run detectors on CPUs, or the --address of a cluster with GPUs."
        )
    per_worker = min(1.0, gpus) if engine.gpus_per_worker is None else engine.gpus_per_worker
    if detectors * engine.gpus_per_detector + per_worker > gpus + 1e-6:
        raise UserError(
            f"{detectors} detectors with {engine.gpus_per_detector:g} GPUs each leave too little of the {gpus:g} "
            f"GPUs of this machine for a worker, which requires {per_worker:g}; reduce --gpus-per-worker or "
            f"--gpus-per-detector."
        )


def _gpus(count: float) -> str:
    return f"{count:g} GPU" + ("" if count == 1 else "s")


def alive_nodes() -> list[dict[str, Any]]:
    """The running nodes of the connected cluster in Ray's form; blocks while the head node does not respond."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def own_node() -> str | None:
    """The node of this process in the connected cluster; None if it is unknown, as it may be through ray://."""
    import ray

    with contextlib.suppress(Exception):
        return str(ray.get_runtime_context().get_node_id())
    return None


def cluster_resources() -> ClusterResources:
    """The resources of the connected cluster; blocks while the head node does not respond."""
    alive = alive_nodes()
    nodes, ids = [node["Resources"] for node in alive], [str(node["NodeID"]) for node in alive]
    with contextlib.suppress(Exception):  # private APIs of Ray: they may change, and do not work through ray://
        from ray._private.state import state

        limit = state.get_max_resources_from_cluster_config()
        named = any(_NODE_GROUP in node["Labels"] for node in alive)
        return ClusterResources(nodes, limit is not None or _has_autoscaler(named), limit, ids)
    return ClusterResources(nodes, ids=ids)


def _has_autoscaler(named: bool) -> bool:
    """Whether nodes are added to the connected cluster on demand; `named` says that its node groups have names."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    if report := _internal_kv_get(b"__autoscaling_status"):
        return has_configured_node_types(report)
    # The second autoscaler writes no status. It also runs in clusters with a fixed number of nodes.
    return named and is_autoscaler_v2(fetch_from_server=True)


def has_configured_node_types(report: bytes) -> bool:
    """Whether the status report (JSON) of Ray's monitor process is that of a cluster with an autoscaler.

    The monitor also runs on a single machine and in clusters with a fixed number of nodes. There, no node types are
    configured, and it reports each node as a type of its own, named after the node.
    """
    types = json.loads(report)["autoscaler_report"]["node_type_mapping"] or {}
    return any(name != f"node_{node}" for node, name in types.items())
