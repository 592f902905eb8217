"""Time of `factory --help`, and time from the command to the first accepted sample.

python -m benchmarks.startup
"""

import json
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.common import FACTORY, command_line, options_of, run, started


def main() -> None:
    options_of(command_line(__doc__))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([*FACTORY, "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        start, first = time.perf_counter(), None
        arguments = ["generate", "--classes", "coco", "--n", "16", "--shard-size", "8", "--shards", f"{folder}/set"]
        with started([*FACTORY, *arguments]) as process:
            while process.poll() is None:
                path = Path(folder) / "set" / "progress.json"
                if first is None and path.exists() and json.loads(path.read_text())["accepted"]:
                    first = time.perf_counter() - start
                time.sleep(0.02)
        total = time.perf_counter() - start
    print("| | seconds |\n|---|---|")
    print(f"| factory --help, best of 5 | {min(times):.2f} |")
    print(f"| from the command to the first accepted sample in progress.json | {first or total:.1f} |")
    print(f"| whole command, 16 samples | {total:.1f} |")


if __name__ == "__main__":
    run(main)
