"""The engine with jobs that only sleep: efficiency by number of actors, and shards per second of the driver.

    python -m benchmarks.engine --actors 1 4 16 64 --seconds 2

Efficiency is the ideal time for that number of actors, divided by the time from the moment when all actors are ready to
the last completed shard. Actors request a fraction of a core because they only sleep.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.common import command_line, options_of, positive, run
from factory.config.sections import EngineRecipe
from factory.engine.capacity import Capacity, ResourceRequest
from factory.engine.cluster import connected
from factory.engine.pool import Pool
from factory.engine.scheduler import Scheduler
from factory.engine.state import Listener, State
from factory.engine.view import ClusterView
from factory.errors import UserError
from tests.support.jobs import SleepingJob


class Stopwatch:
    """Measures from the moment when all actors are ready."""

    def __init__(self, actors: int) -> None:
        self._actors, self._ready, self._done_before = actors, 0.0, 0

    def tick(self, state: State) -> None:
        if not self._ready and state.workers >= self._actors:
            self._ready, self._done_before = time.perf_counter(), state.shards_done

    def stop(self, state: State) -> tuple[float, int]:
        """(seconds, finished shards) since all actors were ready."""
        if not self._ready:
            raise UserError(
                f"the shards were finished before all {self._actors} actors were ready; increase --seconds or "
                f"--shards-each."
            )
        return time.perf_counter() - self._ready, state.shards_done - self._done_before


@contextmanager
def finished_run(actors: int, seconds: float, shards: int, listener: Listener) -> Iterator[State]:
    """A run of shards that sleep for `seconds`; the actors end with the `with`."""
    with tempfile.TemporaryDirectory() as folder:
        engine = EngineRecipe(workers=actors)
        pool = Pool(SleepingJob(folder, seconds=seconds), ResourceRequest(0))
        try:
            with ClusterView(Capacity(engine, 0)) as view:
                state = Scheduler(pool, range(shards), view, engine, listener).run()
            yield state
        finally:
            pool.close()


def measure(actors: int, seconds: float, shards: int) -> tuple[float, int]:
    """(seconds, finished shards) from the moment when all actors are ready to the end."""
    watch = Stopwatch(actors)
    with finished_run(actors, seconds, shards, Listener(tick=watch.tick)) as state:
        return watch.stop(state)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--actors", type=positive, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--shards-each", type=positive, default=12)
    options = options_of(parser)
    print("| actors | shards | seconds | ideal seconds | efficiency | shards per second |\n|---|---|---|---|---|---|")
    with connected(EngineRecipe(workers=1), 1):
        for actors in options.actors:
            taken, done = measure(actors, options.seconds, actors * options.shards_each)
            ideal = done * options.seconds / actors
            row = f"| {actors} | {done} | {taken:.2f} | {ideal:.2f} | {ideal / taken:.3f} | {done / taken:.1f} |"
            print(row, flush=True)
        taken, done = measure(4, 0.0, 2000)
    print(f"\nEmpty shards, 4 actors: {done / taken:.0f} shards per second through the driver.")


if __name__ == "__main__":
    run(main)
