"""The scheduler's view of the cluster: its capacity, and how long the head node has been silent."""

import threading
import time

from factory.engine.capacity import Capacity, ResourceRequest, own_node
from factory.engine.pauses import Pauses

_INTERVAL = 2.0


class ClusterView:
    """Queries the cluster every two seconds for the duration of the `with`.

    The query runs in a thread because it blocks while the head node does not respond. Ray waits a minute for the head
    node and then aborts the process without a useful message.
    """

    def __init__(self, capacity: Capacity) -> None:
        """Queries the cluster once, synchronously."""
        self._capacity = capacity
        self._latest = capacity.current()
        self._updated = self._resumed = time.monotonic()
        self._pauses = Pauses()
        self._own: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cluster-view", daemon=True)

    def __enter__(self) -> "ClusterView":
        self._own = own_node()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=_INTERVAL)

    @property
    def request(self) -> ResourceRequest:
        """The resources that a worker requests."""
        return self._latest[0]

    @property
    def fitting(self) -> int:
        """How many workers to request."""
        return self._latest[1]

    @property
    def own_node_died(self) -> bool:
        """Whether the node of this process has died. Ray then ends all its actors and starts no new ones."""
        return self._own is not None and self._own not in self._capacity.nodes

    def silent_for(self) -> float:
        """Seconds for which a response of the head node is overdue. The scheduler asks at every step."""
        now = time.monotonic()
        if self._pauses.ended():
            self._resumed = now  # until then, this process could not receive a response
        return max(0.0, now - max(self._updated, self._resumed) - _INTERVAL)

    def _watch(self) -> None:
        import ray

        while not self._stop.wait(_INTERVAL):
            try:
                self._latest = self._capacity.current()
            except (ray.exceptions.RayError, RuntimeError, ConnectionError):
                continue
            self._updated = time.monotonic()
