"""The queue of shards, and how often each was tried in vain."""

from collections import Counter, deque
from collections.abc import Iterable

TRIES = 3
"""Errors of one shard before it is given up."""
LOSSES = 5
"""Workers lost with one shard before it is given up: a machine may well go away twice, but not always with this one."""


class ShardQueue:
    """Shards to be made, first come first served.

    A shard that was with a lost worker is under suspicion of having killed it (out of memory, a crash in a library).
    From then on it goes to a worker that has no other, so that its neighbours are neither lost with it nor blamed.
    """

    def __init__(self, shards: Iterable[int]) -> None:
        self._waiting = deque(shards)
        self._errors, self._losses = Counter[int](), Counter[int]()
        self._suspects: set[int] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def next(self, beside_another: bool) -> int | None:
        """The next shard for a worker; None where all that wait must be made alone and the worker has a shard."""
        for place, shard in enumerate(self._waiting):
            if not (beside_another and shard in self._suspects):
                del self._waiting[place]
                return shard
        return None

    def is_suspect(self, shard: int) -> bool:
        """Whether a worker was lost with this shard."""
        return shard in self._suspects

    def done(self, shard: int) -> None:
        """A shard was made: it is above suspicion."""
        self._suspects.discard(shard)

    def put_back(self, shard: int) -> None:
        """A shard that was not begun, or was lost through no fault of its own: the next one to be given."""
        self._waiting.appendleft(shard)

    def failed(self, shard: int) -> int:
        """Count an error, and queue the shard at the end if it has tries left; returns the errors so far."""
        self._errors[shard] += 1
        if self._errors[shard] < TRIES:
            self._waiting.append(shard)
        return self._errors[shard]

    def lost(self, shard: int) -> int:
        """Count the loss of a worker that was making the shard, as `failed`; returns the losses so far."""
        self._suspects.add(shard)
        self._losses[shard] += 1
        if self._losses[shard] < LOSSES:
            self._waiting.append(shard)
        return self._losses[shard]

    def lost_waiting(self, shard: int) -> None:
        """A shard that waited in a worker which was lost: probably innocent, so it is next, but alone."""
        self._suspects.add(shard)
        self._waiting.appendleft(shard)
