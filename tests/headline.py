"""The headline run: 110,000 samples of the 80 COCO classes in budgeted nights against an S3 server, with kills.

    python -m tests.headline --state runs/headline --minutes 120

Runs `factory nightly` in mode `grow`, one night after the other, and kills a random process every few minutes: a
worker, the driver, or the driver's whole process tree, as when a machine is lost. Every command after a kill is the
same as before.

moto's S3 server keeps objects in memory, so the folder `--state` contains a copy of the bucket, which is updated
whenever a driver has ended. Rerun the same command to continue. Exits with 75 if samples remain, and with 0 when the
dataset is complete and `factory verify` has found no damage.
"""

import argparse
import datetime
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from factory.dataset.storage import Store
from tests.chaos import PROGRAM, TRY_AGAIN, strike
from tests.support.chaos_buckets import buckets

KILLS = ("worker", "driver", "tree")
FIRST_NIGHT = datetime.date(2026, 1, 1)
ROOT = "s3://chaos/nightly"
ENDED, FAILED, TERMINATED = (0, 4), 3, (143, -signal.SIGTERM)


class StateFolder:
    """What must survive the machine: a copy of the bucket, the log of kills, and the output of the commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._objects = folder / "bucket"
        self._objects.mkdir(parents=True, exist_ok=True)
        self._tags: dict[str, str] = {}

    def restore(self) -> int:
        """Upload the copy to the empty bucket; returns the number of objects."""
        store = Store(ROOT)
        files = sorted(path for path in self._objects.rglob("*") if path.is_file() and path.suffix != ".part")
        for path in files:
            store.put_file(path.relative_to(self._objects).as_posix(), path)
        self._tags = {name: entry.tag for name, entry in store.entries("").items()}
        return len(files)

    def save(self) -> int:
        """Copy new and changed objects of the bucket; returns their number."""
        store = Store(ROOT)
        entries = store.entries("")
        changed = [name for name, entry in entries.items() if self._tags.get(name) != entry.tag]
        for name, found in store.get_many(changed):
            if found is not None:
                path = self._objects / name
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(path.name + ".part")
                part.write_bytes(found[0])
                part.replace(path)
                self._tags[name] = found[1]
        for name in [name for name in self._tags if name not in entries]:
            (self._objects / name).unlink(missing_ok=True)
            del self._tags[name]
        return len(changed)

    def record(self, **event: Any) -> None:
        """Add a line to the log of events, and print it."""
        line = json.dumps({"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), **event})
        print(line, flush=True)
        with (self.folder / "events.jsonl").open("a") as log:
            log.write(line + "\n")

    def events(self) -> list[dict[str, Any]]:
        """The events of all runs so far."""
        log = self.folder / "events.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


class HeadlineRun:
    """Nights until the dataset is complete or the time is over."""

    def __init__(self, state: StateFolder, options: argparse.Namespace) -> None:
        self._state, self._options = state, options
        self._end = time.monotonic() + 60 * options.minutes
        kills = sum(event["event"] == "kill" for event in state.events())
        self._dice = random.Random(f"{options.seed}/{kills}")
        self._config = state.folder / "nightly.yaml"
        self._config.write_text(yaml.safe_dump(configuration(options)))

    def run(self) -> bool:
        """Run the nights; returns whether the dataset is complete."""
        night, failed = self._first_unfinished_night(), False
        while time.monotonic() < self._end:
            record = self._run_night(night)
            if record is None:
                return False
            if failed and record["state"] == "failed":
                raise SystemExit(f"two nights in a row failed; see {self._state.folder / 'nightly.log'}")
            failed = record["state"] == "failed"
            report = {key: record.get(key) for key in ("samples", "new_samples", "yield", "gpu_hours", "seconds")}
            self._state.record(event="night", night=night.isoformat(), state=record["state"], **report)
            if record["state"] == "complete":
                return True
            night += datetime.timedelta(days=1)
        return False

    def _first_unfinished_night(self) -> datetime.date:
        done = [event["night"] for event in self._state.events() if event["event"] == "night"]
        return datetime.date.fromisoformat(done[-1]) + datetime.timedelta(days=1) if done else FIRST_NIGHT

    def _run_night(self, night: datetime.date) -> dict[str, Any] | None:
        """Repeat the command of a night until it ends by itself; returns its record, or None if the time is over.

        A failed night is not repeated: a scheduler would start the next one, as after an interruption that outlasted
        the budget.
        """
        while True:
            code, record = self._launch(night)
            self._state.save()
            if code in (*ENDED, FAILED) and record is not None:
                return record
            if code in TERMINATED:
                return None
            if code not in (-signal.SIGKILL, TRY_AGAIN):
                raise SystemExit(f"the night of {night} ended with {code}; see {self._state.folder / 'nightly.log'}")

    def _launch(self, night: datetime.date) -> tuple[int, dict[str, Any] | None]:
        with (self._state.folder / "nightly.log").open("a") as log:
            command = [*PROGRAM, "nightly", str(self._config), "--date", night.isoformat()]
            driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
            self._watch(driver, night)
            output = driver.communicate(timeout=3600)[0]
        lines = [line for line in output.splitlines() if line.startswith("{")]
        return driver.returncode, json.loads(lines[-1]) if lines else None

    def _watch(self, driver: subprocess.Popen[str], night: datetime.date) -> None:
        """Kill a process from time to time, until the driver ends or the time is over."""
        due = self._next_kill()
        while driver.poll() is None:
            if time.monotonic() > self._end:
                driver.send_signal(signal.SIGTERM)
                return
            if time.monotonic() > due:
                self._kill(driver, night)
                due = self._next_kill()
            time.sleep(0.5)

    def _next_kill(self) -> float:
        return time.monotonic() + 60 * self._options.kill_every * self._dice.uniform(0.5, 1.5)

    def _kill(self, driver: subprocess.Popen[str], night: datetime.date) -> None:
        kinds = [event["kind"] for event in self._state.events() if event["event"] == "kill"]
        kind = KILLS[len(kinds) % len(KILLS)]
        self._state.record(event="kill", kind=kind, night=night.isoformat(), victim=strike(driver, kind, self._dice))


def configuration(options: argparse.Namespace) -> dict[str, Any]:
    """The configuration of the nights."""
    return {
        "root": ROOT,
        "mode": "grow",
        "target": options.n,
        "budget": {"hours": options.night_minutes / 60},
        "verify": {"shards": 20},
        "recipe": {
            "classes": "coco",
            "shard_size": options.shard_size,
            "generator": {"model": "stickers-turbo", "dtype": "bfloat16"},
        },
    }


def verified(state: StateFolder) -> bool:
    """Whether `factory verify` finds the dataset complete and undamaged."""
    result = subprocess.run(
        [*PROGRAM, "verify", f"{ROOT}/dataset", "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    (state.folder / "verify.json").write_text(result.stdout)
    return result.returncode == 0


def parsed_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="Folder that keeps everything between runs.")
    parser.add_argument("--minutes", type=float, default=120, help="End with SIGTERM after this time.")
    parser.add_argument("--n", type=int, default=110_000)
    parser.add_argument("--shard-size", type=int, default=100)
    parser.add_argument("--night-minutes", type=float, default=30, help="Budget of a night.")
    parser.add_argument("--kill-every", type=float, default=10, help="Minutes between kills, on average.")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Run until the dataset is complete or the time is over."""
    options = parsed_options()
    state = StateFolder(options.state)
    with buckets("s3", options.seed):
        started = time.monotonic()
        state.record(event="start", restored=state.restore(), seconds=round(time.monotonic() - started, 1))
        complete = HeadlineRun(state, options).run()
        copied = state.save()
        sound = complete and verified(state)
        listing = subprocess.run([*PROGRAM, "status", ROOT], stdout=subprocess.PIPE, text=True, check=False).stdout
        (state.folder / "nights.txt").write_text(listing)
        print(listing, flush=True)
        state.record(event="end", complete=complete, verified=sound, copied=copied)
    sys.exit(0 if sound else 3 if complete else TRY_AGAIN)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
