"""Peak memory of the driver and the workers for growing n; it must stay constant.

    python -m benchmarks.memory --shards 1000 10000 100000 --samples 128 512 1024

The first table is the engine with shards without samples, the second `factory generate` with the embedded model. Peaks
are the resident set sizes of the largest process of each kind, sampled five times per second.
"""

import argparse
import sys
import tempfile
import time
from contextlib import suppress

import psutil

from benchmarks.common import FACTORY, command_line, options_of, positive, run, started

_EMPTY = "--only-empty-shards"


def peaks(command: list[str]) -> tuple[float, float, float]:
    """(driver MiB, largest worker MiB, seconds) of a command that starts a local Ray cluster."""
    start = time.perf_counter()
    driver, worker = 0, 0
    with started(command) as process:
        monitored = psutil.Process(process.pid)
        while process.poll() is None:
            with suppress(psutil.Error):
                driver = max(driver, monitored.memory_info().rss)
                for child in monitored.children(recursive=True):
                    with suppress(psutil.Error, IndexError):
                        if child.cmdline()[0].startswith("ray::ShardWorker"):
                            worker = max(worker, child.memory_info().rss)
            time.sleep(0.2)
    return driver / 2**20, worker / 2**20, time.perf_counter() - start


def empty_shards(count: int) -> None:
    """Run the scheduler with four actors and empty shards."""
    from benchmarks.engine import finished_run
    from factory.config.sections import EngineRecipe
    from factory.engine.cluster import connected
    from factory.engine.state import Listener

    with connected(EngineRecipe(workers=1), 1), finished_run(4, 0.0, count, Listener()):
        pass


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--shards", type=positive, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--samples", type=positive, nargs="*", default=[128, 512, 1024])
    parser.add_argument(_EMPTY, type=positive, help=argparse.SUPPRESS)
    options = options_of(parser)
    if options.only_empty_shards:
        empty_shards(options.only_empty_shards)
        return
    print("| shards without samples | driver MiB | worker MiB | seconds |\n|---|---|---|---|")
    for count in options.shards:
        driver, worker, seconds = peaks([sys.executable, "-m", "benchmarks.memory", _EMPTY, str(count)])
        print(f"| {count} | {driver:.0f} | {worker:.0f} | {seconds:.0f} |", flush=True)
    print("\n| samples, embedded model | driver MiB | worker MiB | seconds |\n|---|---|---|---|")
    for count in options.samples:
        with tempfile.TemporaryDirectory() as folder:
            arguments = ["generate", "--classes", "coco", "--n", str(count), "--shard-size", "32", "--shards", folder]
            driver, worker, seconds = peaks([*FACTORY, *arguments])
        print(f"| {count} | {driver:.0f} | {worker:.0f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    run(main)
