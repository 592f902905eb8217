"""Interrupt `factory generate` at random moments, resume it, and compare every byte with an uninterrupted run.

    python -m tests.chaos --rounds 20
    python -m tests.chaos --rounds 4 --only s3 --only gs

The kinds of rounds alternate:

- `worker`, `driver`, `tree`: SIGKILL of a random worker, of the driver, or of the driver's whole process tree;
- `s3`, `gs`: a bucket with faults, of a real S3 server (moto) behind a proxy or with the protocol of Google Cloud, and
  one SIGKILL;
- `drivers`: two drivers at the same time, one of which takes over from the other;
- `slow`, `outage`: an upload of 40 s, or 20 s without a response, which a single launch must survive.

Prints one line per round and exits with 1 at the first difference.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import yaml

from factory.dataset.storage import Store
from tests.support.bucket import Fault
from tests.support.chaos_buckets import bucket_hashes, buckets
from tests.support.program import PROGRAM, hashes

MOST_LAUNCHES = 12
KINDS = ("worker", "driver", "tree", "s3", "gs", "drivers", "slow", "outage")
LONG_UPLOAD, LONG_OUTAGE = 40, 20
TRY_AGAIN = 75


def recipe(model: Path, n: int) -> dict[str, object]:
    """A recipe with many retries, so that a run takes long enough to be killed in the middle."""
    return {
        "classes": "voc",
        "n": n,
        "objects": {1: 0.5, 2: 0.5},
        "shard_size": 4,
        "batch": 2,
        "attempts": 40,
        "generator": {"model": str(model), "steps": 4, "solver": "ddim", "dtype": "float32"},
        "masks": {"noise_level": 0.5},
        "filters": {"min_area": 0.3, "duplicate_distance": None},
    }


def launch(file: Path, out: Path | str, workers: int, *more: str) -> subprocess.Popen[str]:
    """Start `factory generate` in its own process group, with SIGINT enabled.

    A shell that runs the tests in the background has its children ignore SIGINT, and Python keeps what it inherits.
    """
    arguments = ["generate", "--recipe", str(file), "--shards", str(out), "--workers", str(workers), *more]
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def too_busy(driver: subprocess.Popen[str], text: str) -> bool:
    """Whether Ray did not start within 30 s because the machine was too busy; the command is then repeated."""
    return driver.returncode == TRY_AGAIN and "Ray did not start on this machine" in text


def undisturbed_run(file: Path, out: Path) -> dict[str, str]:
    """The hashes of an uninterrupted run."""
    for _ in range(MOST_LAUNCHES):
        driver = launch(file, out, 1)
        text, _ = driver.communicate(timeout=600)
        if driver.returncode == 0:
            return hashes(out)
        if not too_busy(driver, text):
            raise SystemExit(text)
    raise SystemExit(f"not done after {MOST_LAUNCHES} launches")


def workers_of(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """The generating workers below a driver."""
    try:
        below = psutil.Process(driver.pid).children(recursive=True)
        return [process for process in below if "ShardWorker" in " ".join(_command(process))]
    except psutil.NoSuchProcess:
        return []


def strike(driver: subprocess.Popen[str], kind: str, dice: random.Random) -> str:
    """SIGKILL a process; returns which one."""
    if kind == "worker":
        alive = workers_of(driver)
        if not alive:
            return "no worker was alive"
        victim = dice.choice(alive)
        _kill(victim)
        return f"worker {victim.pid}"
    tree = psutil.Process(driver.pid).children(recursive=True) if kind == "tree" and driver.poll() is None else []
    if driver.poll() is None:
        os.kill(driver.pid, signal.SIGKILL)
    for process in tree:
        _kill(process)
    return kind


def disturbed(file: Path, out: Path, workers: int, kind: str, dice: random.Random) -> list[str]:
    """Run until the dataset is complete, killing all launches but the last at a random moment; returns the kills."""
    struck: list[str] = []
    for _ in range(MOST_LAUNCHES):
        driver = launch(file, out, workers)
        if len(struck) < 2:
            _wait_for_work(driver, out)
            time.sleep(dice.uniform(0, 1.5))
            struck.append(strike(driver, kind, dice))
        text, _ = driver.communicate(timeout=300)
        if driver.returncode == 0:
            return struck
        if driver.returncode != -signal.SIGKILL and not too_busy(driver, text):
            raise SystemExit(f"the run ended with {driver.returncode}:\n{text}")
    raise SystemExit(f"not done after {MOST_LAUNCHES} launches")


def on_a_bucket(file: Path, kind: str, workers: int, dice: random.Random) -> tuple[list[str], dict[str, str]]:
    """Generate a dataset on a bucket with faults, with one kill; returns (events, hashes)."""
    address = f"{kind}://chaos/set"
    with buckets(kind, dice.randrange(2**32)) as bucket:
        names = dice.sample(["reset", "lost", "cut", "status", "stall"], 3)
        bucket.faults[:] = [Fault(name, times=None, chance=dice.uniform(0.02, 0.1), seconds=1) for name in names]
        happened, victim = [*names], dice.choice(["worker", "driver", "nobody"])
        for _ in range(MOST_LAUNCHES):
            driver = launch(file, address, workers)
            if victim != "nobody":
                time.sleep(dice.uniform(6, 14))
                happened.append(strike(driver, victim, dice))
                victim = "nobody"
            else:
                time.sleep(dice.uniform(2, 10))
                length = dice.uniform(2, 12)
                bucket.faults.append(Fault("outage", times=None, seconds=length))
                happened.append(f"outage of {length:.0f} s")
            text, _ = driver.communicate(timeout=300)
            if driver.returncode == 0:
                break
            if driver.returncode != -signal.SIGKILL and not too_busy(driver, text):
                raise SystemExit(f"the run ended with {driver.returncode}:\n{text}")
        bucket.faults.clear()
        return happened, bucket_hashes(address)


def long_trouble(file: Path, kind: str, workers: int, dice: random.Random) -> tuple[list[str], dict[str, str]]:
    """A long fault that a single launch must survive; returns (events, hashes).

    slow: every upload of one shard takes 40 s. outage: the bucket does not respond for 20 s.
    """
    address = "s3://chaos/set"
    with buckets("s3", dice.randrange(2**32)) as bucket:
        shard = f"train/{dice.randrange(2):06d}.tar"
        if kind == "slow":
            bucket.faults[:] = [Fault("throttle", f"PUT .*{shard}", times=None, seconds=LONG_UPLOAD)]
        driver = launch(file, address, workers)
        if kind == "outage":
            _wait_for_receipts(driver, address)
            bucket.faults[:] = [Fault("outage", times=None, seconds=LONG_OUTAGE)]
        text, _ = driver.communicate(timeout=600)
        if driver.returncode:
            raise SystemExit(f"the run ended with {driver.returncode}:\n{text}")
        struck = sum(count for name, count in bucket.requests.items() if name.endswith(("outage", "throttle")))
        if not struck or (kind == "outage" and "does not respond" not in text):
            raise SystemExit(f"{struck} requests met the {kind}:\n{text}")
        bucket.faults.clear()
        happened = (
            f"{struck} uploads of {shard} in {LONG_UPLOAD} s each" if kind == "slow" else f"{struck} requests lost"
        )
        return [happened], bucket_hashes(address)


def two_drivers(file: Path, out: Path, workers: int, dice: random.Random) -> list[str]:
    """A second driver is refused and a third one takes over; the first one ends, and no shard is generated twice."""
    first = launch(file, out, workers)
    deadline = time.monotonic() + 60
    while not (out / "lease.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    second = launch(file, out, workers)
    said = second.communicate(timeout=60)[0]
    if second.returncode != TRY_AGAIN or f"process {first.pid} " not in said:
        raise SystemExit(f"the second driver ended with {second.returncode}:\n{said}")
    time.sleep(dice.uniform(0, 6))
    third = launch(file, out, workers, "--force")
    said = third.communicate(timeout=300)[0]
    if third.returncode:
        raise SystemExit(f"the third driver ended with {third.returncode}:\n{said}")
    said = first.communicate(timeout=60)[0]
    if first.returncode not in (0, TRY_AGAIN):
        raise SystemExit(f"the first driver ended with {first.returncode}:\n{said}")
    return ["a second driver was refused", f"a third took over, the first ended with {first.returncode}"]


def _wait_for_work(driver: subprocess.Popen[str], out: Path) -> None:
    """Wait until a worker has written a new file, or the run has ended."""
    before = len(list(out.glob("receipts/*.json")))
    deadline = time.monotonic() + 60
    while driver.poll() is None and time.monotonic() < deadline:
        if workers_of(driver) and len(list(out.glob("receipts/*.json"))) > before:
            return
        time.sleep(0.05)


def _wait_for_receipts(driver: subprocess.Popen[str], address: str) -> None:
    """Wait until two shards are finished."""
    store, deadline = Store(address), time.monotonic() + 200
    while driver.poll() is None and time.monotonic() < deadline:
        if len(store.list("receipts")) >= 2:
            return
        time.sleep(0.2)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def parsed_options(description: str | None, kinds: Sequence[str]) -> argparse.Namespace:
    """The command line of a chaos script."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=kinds, action="append", help="Kinds of rounds; all by default.")
    return parser.parse_args()


def in_turn(kinds: Sequence[str], number: int) -> str:
    """The kind of a round: all kinds alternate, so that a few rounds include all of them."""
    return kinds[number % len(kinds)]


def main() -> None:
    """Run the rounds."""
    from tests.support.tiny_pipeline import tiny_pipeline

    options = parsed_options(__doc__, KINDS)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        file = place / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe(tiny_pipeline(place / "model"), options.n)))
        expected = undisturbed_run(file, place / "undisturbed")
        for number in range(options.rounds):
            dice = random.Random(f"{options.seed}/{number}")
            kind, workers = in_turn(options.only or KINDS, number), dice.choice([1, 2, 3])
            out = place / f"round-{number}"
            if kind in ("s3", "gs"):
                happened, found = on_a_bucket(file, kind, workers, dice)
            elif kind in ("slow", "outage"):
                happened, found = long_trouble(file, kind, workers, dice)
            else:
                happened = (
                    two_drivers(file, out, workers, dice)
                    if kind == "drivers"
                    else [f"killed {victim}" for victim in disturbed(file, out, workers, kind, dice)]
                )
                found = hashes(out)
            same = found == expected
            result = "same bytes" if same else "DIFFERENT"
            print(f"round {number} ({kind}): {workers} workers, {', '.join(happened)}: {result}", flush=True)
            if not same:
                raise SystemExit(1)
    print(f"{options.rounds} rounds, {len(expected)} files each, all equal to the undisturbed run")


if __name__ == "__main__":
    main()
