"""Driver overhead with an object store of 30 ms latency: start, status, description, and shards per second.

    python -m benchmarks.driver --shards 100000

The bucket is a server in a process of its own that waits `--latency` before each answer. `processor` is the processor
time of the driver alone, which other programs on the machine hardly affect. Rows:

- `driver`: shards per second that a run's reporter can process, while it reads receipts for the index. The simulated
  workers finish 800 shards per second for `--seconds`, or until all shards are finished.
- `description, no index`: totals of all receipts, each of which is read, as for a dataset of an older version.
- `description`, `status`: the same with the receipt index that a run writes.
- `start`: finds the missing shards of an incomplete dataset: recipe, lease, receipts, index, quarantine.
"""

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from benchmarks.common import command_line, options_of, positive, run
from factory.cli.status import state
from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.dataset.description import write_description
from factory.dataset.lease import leased
from factory.dataset.receipt_index import INDEX
from factory.dataset.receipts import missing_shards, receipt_name
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import existing_recipe
from factory.dataset.totals import finished_entries
from factory.engine.interface import Done
from factory.engine.state import State
from factory.generation.progress import Tracker
from factory.generation.reporter import Reporter, quarantined
from tests.support.bucket import Bucket, serving
from tests.support.receipts import receipt

ADDRESS = "s3://bucket/set"
SHARD_SIZE = 100
_RATE = 800
"""Shards per second of the simulated workers."""


def serve(shards: int, recipe: Recipe, latency: float, pipe: Connection) -> None:
    """Run the bucket. Answers every message on the pipe with the request counts since the previous message."""
    bucket, fingerprint = Bucket(), recipe.fingerprint()
    bucket.put("bucket/set/recipe.yaml", recipe.to_yaml().encode())
    for number in range(shards):
        bucket.put(f"bucket/set/{receipt_name(number)}", receipt(number, SHARD_SIZE - 1, SHARD_SIZE, fingerprint))
    with serving(bucket):
        bucket.latency = latency
        pipe.send(bucket.environment())
        while pipe.recv():
            pipe.send(dict(bucket.requests))
            bucket.requests.clear()


def start(store: Store) -> int:
    """The work of `generate` before it starts workers."""
    recipe = existing_recipe(store)
    assert recipe is not None
    with leased(store):
        plan = Plan(recipe)
        quarantined(store)
        return len(missing_shards(plan, finished_entries(store, plan, save=True)))


def drive(store: Store, recipe: Recipe, shards: int, seconds: float) -> float:
    """Shards per second of a run whose workers finish `_RATE` shards per second, until all receipts are indexed."""
    with leased(store) as held:
        tracker, run = Tracker(Plan(recipe), range(shards)), State(shards)
        reporter = Reporter(store, tracker, lambda snapshot: None, held, set())
        listener = reporter.as_listener()
        start_time, number = time.perf_counter(), 0
        while number < shards and (now := time.perf_counter() - start_time) < seconds:
            while number < min(shards, int(now * _RATE)):
                run.add(Done(99, 150))
                listener.finished(number)
                number += 1
            listener.tick(run)
            time.sleep(0.01)
        reporter.drain()
        seconds_taken = time.perf_counter() - start_time
        reporter.close(tracker.snapshot(run, "interrupted"))
    return number / seconds_taken


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--shards", type=positive, default=100_000)
    parser.add_argument("--latency", type=float, default=0.03)
    parser.add_argument("--seconds", type=float, default=20.0, help="Duration of the `driver` row.")
    options = options_of(parser)
    shards = options.shards
    recipe = make_recipe({"n": (shards + 1) * SHARD_SIZE, "shard_size": SHARD_SIZE})
    pipe, server_pipe = multiprocessing.Pipe()
    arguments = (shards, recipe, options.latency, server_pipe)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=arguments, daemon=True)
    server.start()
    os.environ |= pipe.recv()

    def timed(name: str, action: Callable[[], object]) -> None:
        pipe.send("reset")
        pipe.recv()
        began, used = time.perf_counter(), time.process_time()
        result = action()
        taken, used = time.perf_counter() - began, time.process_time() - used
        pipe.send("count")
        requests = sum(pipe.recv().values())
        figure = f"{result:.0f} shards/s" if isinstance(result, float) else f"{taken:.1f} s"
        print(f"| {name} | {figure} | {used:.1f} s | {requests} |", flush=True)

    print("| | | processor | requests |\n|---|---|---|---|")
    timed("driver", lambda: drive(Store(ADDRESS), recipe, shards, options.seconds))
    Store(ADDRESS).delete_all(Store(ADDRESS).list(INDEX))
    timed("description, no index", lambda: write_description(Store(ADDRESS), recipe))
    timed("description", lambda: write_description(Store(ADDRESS), recipe))
    timed("start", lambda: start(Store(ADDRESS)))
    timed("status", lambda: state(ADDRESS))
    pipe.send("")
    server.terminate()


if __name__ == "__main__":
    run(main)
