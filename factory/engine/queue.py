"""The queue of shards, with the errors and lost workers of each."""

from collections import Counter, deque
from collections.abc import Iterable

MAX_ERRORS = 3
"""Errors of one shard after which it is quarantined."""
MAX_LOSSES = 5
"""Workers lost with one shard after which it is quarantined. Nodes may be lost twice by chance, but not five times with
the same shard."""


class ShardQueue:
    """Shards to be produced, first in, first out.

    A shard whose worker was lost is a suspect: it may have killed the worker (out of memory, a crash in a library).
    From then on, it is assigned only to a worker without another shard, so that no other shard is lost or suspected.
    """

    def __init__(self, shards: Iterable[int]) -> None:
        self._waiting = deque(shards)
        self._errors, self._losses = Counter[int](), Counter[int]()
        self._suspects: set[int] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def next(self, beside_another: bool) -> int | None:
        """The next shard for a worker; None if the worker has a shard already and only suspects are left."""
        for index, shard in enumerate(self._waiting):
            if not (beside_another and shard in self._suspects):
                del self._waiting[index]
                return shard
        return None

    def is_suspect(self, shard: int) -> bool:
        """Whether a worker was lost with this shard."""
        return shard in self._suspects

    def done(self, shard: int) -> None:
        """Record a finished shard, which is no longer a suspect."""
        self._suspects.discard(shard)

    def put_back(self, shard: int) -> None:
        """Requeue a shard at the front that was not started, or that was lost for an unrelated reason."""
        self._waiting.appendleft(shard)

    def failed(self, shard: int) -> int:
        """Count an error and requeue the shard at the end if it has tries left; returns the number of errors."""
        self._errors[shard] += 1
        if self._errors[shard] < MAX_ERRORS:
            self._waiting.append(shard)
        return self._errors[shard]

    def lost(self, shard: int) -> int:
        """As `failed`, for the loss of the worker that was producing the shard; returns the number of losses."""
        self._suspects.add(shard)
        self._losses[shard] += 1
        if self._losses[shard] < MAX_LOSSES:
            self._waiting.append(shard)
        return self._losses[shard]

    def lost_waiting(self, shard: int) -> None:
        """Requeue a shard that waited in a lost worker: probably not the cause, so at the front, but as a suspect."""
        self._suspects.add(shard)
        self._waiting.appendleft(shard)
