"""Peak memory of the driver and the workers for growing n; it must stay constant.

    python -m benchmarks.memory --shards 1000 10000 100000 --samples 128 512 1024

The first table is the engine with empty shards, the second `factory generate` with the embedded model. Peaks are the
resident set sizes of the largest process of each kind, sampled five times per second.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

_EMPTY = "--only-empty-shards"


def peaks(command: list[str]) -> tuple[float, float, float]:
    """(driver MiB, largest worker MiB, seconds) of a command that starts a local Ray cluster."""
    start = time.perf_counter()
    driver, worker = 0, 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        monitored = psutil.Process(process.pid)
        while process.poll() is None:
            with suppress(psutil.Error):
                driver = max(driver, monitored.memory_info().rss)
                for child in monitored.children(recursive=True):
                    with suppress(psutil.Error, IndexError):
                        if child.cmdline()[0].startswith("ray::ShardWorker"):
                            worker = max(worker, child.memory_info().rss)
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return driver / 2**20, worker / 2**20, time.perf_counter() - start


def empty_shards(count: int) -> None:
    """Run the scheduler with four actors and empty shards."""
    from factory.config.sections import EngineRecipe
    from factory.engine.capacity import Capacity, Share
    from factory.engine.cluster import connected
    from factory.engine.pool import Pool
    from factory.engine.scheduler import Scheduler
    from factory.engine.state import Listener
    from factory.engine.view import ClusterView
    from tests.support.jobs import SleepingJob

    with tempfile.TemporaryDirectory() as folder, connected(EngineRecipe(workers=1), 1):
        engine = EngineRecipe(workers=4)
        pool = Pool(SleepingJob(folder), Share(0))
        try:
            with ClusterView(Capacity(engine, 0)) as view:
                Scheduler(pool, range(count), view, engine, Listener()).run()
        finally:
            pool.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--samples", type=int, nargs="*", default=[128, 512, 1024])
    parser.add_argument(_EMPTY, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_empty_shards:
        empty_shards(options.only_empty_shards)
        return
    print("| shards of nothing | driver MiB | worker MiB | seconds |\n|---|---|---|---|")
    for count in options.shards:
        driver, worker, seconds = peaks([sys.executable, "-m", "benchmarks.memory", _EMPTY, str(count)])
        print(f"| {count} | {driver:.0f} | {worker:.0f} | {seconds:.0f} |", flush=True)
    print("\n| samples, embedded model | driver MiB | worker MiB | seconds |\n|---|---|---|---|")
    for count in options.samples:
        with tempfile.TemporaryDirectory() as folder:
            arguments = ["generate", "--classes", "coco", "--n", str(count), "--shard-size", "32", "--shards", folder]
            driver, worker, seconds = peaks([str(Path(sys.executable).with_name("factory")), *arguments])
        print(f"| {count} | {driver:.0f} | {worker:.0f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
