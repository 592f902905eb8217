"""Faults that `tests.chaos` does not cover: SIGTERM, poison shards, and machines that join and leave.

    python -m tests.chaos_engine --rounds 20

A `sigterm` round stops `factory generate` at random moments, as Kubernetes or Slurm does, resumes it, and compares
every byte with an uninterrupted run. In a `poison` round, some shards kill every worker. A `hosts` round adds machines
to a cluster and removes some. Prints one line per round and exits with 1 at the first difference.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.chaos import hashes, in_turn, launch, parsed_options, recipe, too_busy, undisturbed_run, workers_of

KINDS = ("sigterm", "poison", "hosts")
TERMINATED = 143


def sigterm(file: Path, out: Path, dice: random.Random) -> list[str]:
    """Stop and resume a run until it is complete; either the driver or its whole process group is signalled."""
    happened: list[str] = []
    for _ in range(20):
        driver = launch(file, out, dice.choice([1, 2]), "--grace", str(dice.choice([0, 1, 20])))
        if len(happened) < 3:
            started = time.monotonic()
            while not workers_of(driver) and driver.poll() is None and time.monotonic() - started < 60:
                time.sleep(0.05)
            time.sleep(dice.uniform(0, 5))
            group = dice.random() < 0.3
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGTERM) if group else driver.send_signal(signal.SIGTERM)
                happened.append("SIGTERM to the group" if group else "SIGTERM")
        text, _ = driver.communicate(timeout=300)
        if driver.returncode == 0:
            return happened
        if too_busy(driver, text):
            continue
        # A shell reports both as 143: Python removes its handlers before the process ends.
        if driver.returncode not in (TERMINATED, -signal.SIGTERM) or "Traceback" in text or ".cc:" in text:
            raise SystemExit(f"the run ended with {driver.returncode}:\n{text}")
    raise SystemExit("not done after 20 launches")


WORK = """
import random, sys, time
from pathlib import Path
from factory.engine import cluster
from factory.engine.capacity import Capacity
from factory.engine.pool import Pool
from factory.engine.scheduler import Scheduler
from factory.engine.state import Listener
from factory.engine.view import ClusterView
from factory.config.sections import EngineRecipe
from tests.support.jobs import SleepingJob

kind, seed, folder = sys.argv[1], sys.argv[2], sys.argv[3]
dice = random.Random(seed)
cluster._keep_token_in_memory()
from ray.cluster_utils import Cluster
there = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
hosts, last = [], [time.monotonic()]

def join():
    try:
        hosts.append(there.add_node(num_cpus=1, wait=False))
    except Exception as error:
        # Ray waits 30 s for a machine; on a loaded computer it takes longer, and joins when it is there.
        if "timed out during startup" not in str(error):
            raise

def tick(state):
    if kind == "hosts" and time.monotonic() - last[0] > 4 and len(hosts) < 4:
        last[0] = time.monotonic()
        if hosts and dice.random() < 0.5:
            there.remove_node(hosts.pop(), allow_graceful=dice.random() < 0.5)
        else:
            join()

shards = 40
poisonous = frozenset(dice.sample(range(shards), dice.choice([1, 2, 3]))) if kind == "poison" else frozenset()
dying = frozenset(dice.sample(range(shards), 3)) - poisonous
job = SleepingJob(folder, seconds=dice.uniform(0.1, 0.8), poisonous=poisonous, dying=dying)
engine = EngineRecipe(address=there.address)
with cluster.connected(engine, 1), ClusterView(Capacity(engine, 1)) as view:
    pool = Pool(job, view.request)
    try:
        state = Scheduler(pool, range(shards), view, engine, Listener(tick=tick)).run()
    finally:
        pool.close()
there.shutdown()
made = {shard for shard in range(shards) if Path(folder, f"done-{shard}").exists()}
assert sorted(state.quarantined) == sorted(poisonous), (state.quarantined, poisonous, list(state.errors))
assert made == set(range(shards)) - poisonous, made
assert state.shards_done == len(made), state
print(f"{len(poisonous)} poison shards, {state.lost} workers lost, {len(hosts)} hosts more")
"""


def at_work(kind: str, folder: Path, seed: str) -> str:
    """One run on its own cluster; returns the events."""
    folder.mkdir()
    command = [sys.executable, "-c", WORK, kind, seed, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400)
    if result.returncode:
        raise SystemExit(f"{kind}, seed {seed}: {result.stderr}")
    return result.stdout.strip()


def main() -> None:
    from tests.support.tiny_pipeline import tiny_pipeline

    options = parsed_options(__doc__, KINDS)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        file = place / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe(tiny_pipeline(place / "model"), options.n)))
        expected: dict[str, str] = {}
        for number in range(options.rounds):
            seed = f"{options.seed}/{number}"
            dice = random.Random(seed)
            kind, out = in_turn(options.only or KINDS, number), place / f"round-{number}"
            if kind != "sigterm":
                print(f"round {number} ({kind}): {at_work(kind, out, seed)}", flush=True)
                continue
            if not expected:
                expected = undisturbed_run(file, place / "undisturbed")
            happened = sigterm(file, out, dice)
            same = hashes(out) == expected
            print(
                f"round {number} ({kind}): {', '.join(happened)}: {'same bytes' if same else 'DIFFERENT'}", flush=True
            )
            if not same:
                raise SystemExit(1)
    print(f"{options.rounds} rounds")


if __name__ == "__main__":
    main()
