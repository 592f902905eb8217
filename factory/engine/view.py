"""What the scheduler knows of the cluster: capacity, and how long the head has been silent; kept by a thread."""

import threading
import time
from types import TracebackType

from factory.engine.capacity import Capacity, Share

_EVERY = 2.0


class ClusterView:
    """Looks at the cluster every other second, for the time of a `with`.

    In a thread, since each look asks the cluster's head and blocks while that does not answer: Ray itself waits a
    minute for it and then ends the process, without a word that explains it.
    """

    def __init__(self, capacity: Capacity) -> None:
        """Takes the first look at once."""
        self._capacity = capacity
        self._latest = capacity.look()
        self._seen = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cluster-view", daemon=True)

    def __enter__(self) -> "ClusterView":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=_EVERY)

    @property
    def share(self) -> Share:
        """What a worker asks for."""
        return self._latest[0]

    @property
    def fitting(self) -> int:
        """How many workers to ask for."""
        return self._latest[1]

    def silent_for(self) -> float:
        """Seconds for which the head should have answered and has not."""
        return max(0.0, time.monotonic() - self._seen - _EVERY)

    def _watch(self) -> None:
        import ray

        while not self._ended.wait(_EVERY):
            try:
                self._latest = self._capacity.look()
            except (ray.exceptions.RayError, RuntimeError, ConnectionError):
                continue
            self._seen = time.monotonic()
