"""The engine with jobs that only sleep: efficiency by number of actors, and shards per second of the driver.

    python -m benchmarks.engine --actors 1 4 16 64 --seconds 2

Efficiency is the ideal time for that number of actors, divided by the time from the moment when all actors are ready to
the last completed shard. Actors request a fraction of a core because they only sleep.
"""

import argparse
import tempfile
import time

from factory.config.sections import EngineRecipe
from factory.engine.capacity import Capacity, Share
from factory.engine.cluster import connected
from factory.engine.pool import Pool
from factory.engine.scheduler import Scheduler
from factory.engine.state import Listener, State
from factory.engine.view import ClusterView
from tests.support.jobs import SleepingJob


class Stopwatch:
    """Records the moment when all actors are ready."""

    def __init__(self, actors: int) -> None:
        self._actors, self.ready, self.done_before = actors, 0.0, 0

    def tick(self, state: State) -> None:
        if not self.ready and state.workers >= self._actors:
            self.ready, self.done_before = time.perf_counter(), state.shards_done


def measure(actors: int, seconds: float, shards: int) -> tuple[float, int]:
    """(seconds from all actors ready to the end, shards done in that time)."""
    watch = Stopwatch(actors)
    with tempfile.TemporaryDirectory() as folder:
        engine = EngineRecipe(workers=actors)
        pool = Pool(SleepingJob(folder, seconds=seconds), Share(0))
        try:
            with ClusterView(Capacity(engine, 0)) as view:
                state = Scheduler(pool, range(shards), view, engine, Listener(tick=watch.tick)).run()
            return time.perf_counter() - watch.ready, state.shards_done - watch.done_before
        finally:
            pool.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--shards-each", type=int, default=12)
    options = parser.parse_args()
    print("| actors | shards | seconds | ideal | efficiency | shards/s |\n|---|---|---|---|---|---|")
    with connected(EngineRecipe(workers=1), 1):
        rows = [(actors, *measure(actors, options.seconds, actors * options.shards_each)) for actors in options.actors]
        dispatch, shards = measure(4, 0.0, 2000)
    for actors, taken, done in rows:
        ideal = done * options.seconds / actors
        print(f"| {actors} | {done} | {taken:.2f} | {ideal:.2f} | {ideal / taken:.3f} | {done / taken:.1f} |")
    print(f"\nEmpty shards, 4 actors: {shards / dispatch:.0f} shards per second through the driver.")


if __name__ == "__main__":
    main()
