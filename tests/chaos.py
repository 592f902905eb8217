"""Kill whatever runs a set, at random moments, resume it, and compare every byte with an undisturbed run.

    python tests/chaos.py --rounds 20

Each round picks one of: SIGKILL of a random worker, of the driver, of the driver's whole process tree. Prints a line a
round and exits with 1 at the first difference.
"""

import argparse
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

PROGRAM = [sys.executable, "-c", "from factory.cli.main import run; run()"]
MOST_LAUNCHES = 12


def recipe(model: Path, n: int) -> dict[str, object]:
    """Samples of two shards' worth of retries: enough to be killed in the middle of."""
    return {
        "classes": "voc",
        "n": n,
        "objects": {1: 0.5, 2: 0.5},
        "shard_size": 4,
        "batch": 2,
        "attempts": 40,
        "generator": {"model": str(model), "steps": 4, "solver": "ddim"},
        "masks": {"capture": "finished", "timesteps": [300]},
        "filters": {"min_area": 0.3, "duplicate_distance": None},
    }


def hashes(out: Path) -> dict[str, str]:
    """Name -> sha256 of every shard and manifest."""
    files = sorted([*out.glob("train/*.tar"), *out.glob("manifest/*.parquet")])
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def launch(file: Path, out: Path, workers: int, *more: str) -> subprocess.Popen[str]:
    """Start `factory generate`, in a process group of its own and with Ctrl-C heard.

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


def workers_of(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """The generating workers below a driver."""
    try:
        below = psutil.Process(driver.pid).children(recursive=True)
        return [process for process in below if "ShardWorker" in " ".join(_command(process))]
    except psutil.NoSuchProcess:
        return []


def strike(driver: subprocess.Popen[str], kind: str, dice: random.Random) -> str:
    """SIGKILL something; says what it was."""
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
    """Run a set to its end, striking at a random moment of each launch but the last; says what was struck."""
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
        if driver.returncode != -signal.SIGKILL:
            raise SystemExit(f"the run ended with {driver.returncode}:\n{text}")
    raise SystemExit(f"not done after {MOST_LAUNCHES} launches")


def _wait_for_work(driver: subprocess.Popen[str], out: Path) -> None:
    """Until a worker has written something new, or the run is over."""
    before = len(list(out.glob("receipts/*.json")))
    deadline = time.monotonic() + 60
    while driver.poll() is None and time.monotonic() < deadline:
        if workers_of(driver) and len(list(out.glob("receipts/*.json"))) > before:
            return
        time.sleep(0.05)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def main() -> None:
    """The rounds."""
    from factory.testing.tiny_pipeline import tiny_pipeline

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        file = place / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe(tiny_pipeline(place / "model"), options.n)))
        calm = launch(file, place / "calm", 1)
        text, _ = calm.communicate(timeout=600)
        if calm.returncode:
            raise SystemExit(text)
        expected = hashes(place / "calm")
        for number in range(options.rounds):
            dice = random.Random(f"{options.seed}/{number}")
            kind, workers = dice.choice(["worker", "driver", "tree"]), dice.choice([1, 2, 3])
            out = place / f"round-{number}"
            struck = disturbed(file, out, workers, kind, dice)
            same = hashes(out) == expected
            told = "same bytes" if same else "DIFFERENT"
            print(f"round {number}: {workers} workers, killed {', '.join(struck)}: {told}", flush=True)
            if not same:
                raise SystemExit(1)
    print(f"{options.rounds} rounds, {len(expected)} files each, all equal to the undisturbed run")


if __name__ == "__main__":
    main()
