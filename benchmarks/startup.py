"""Time of `factory --help`, and time from the command to the first accepted sample.

python -m benchmarks.startup
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = [sys.executable, "-m", "factory"]


def main() -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([*PROGRAM, "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        start, first = time.perf_counter(), None
        arguments = ["generate", "--classes", "coco", "--n", "16", "--shard-size", "8", "--shards", f"{folder}/set"]
        run = subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while run.poll() is None:
            path = Path(folder) / "set" / "progress.json"
            if first is None and path.exists() and json.loads(path.read_text())["accepted"]:
                first = time.perf_counter() - start
            time.sleep(0.02)
        total = time.perf_counter() - start
    print("| what | seconds |\n|---|---|")
    print(f"| factory --help, best of 5 | {min(times):.2f} |")
    print(f"| command to first accepted sample in progress.json | {first or total:.1f} |")
    print(f"| 16 samples, whole command | {total:.1f} |")


if __name__ == "__main__":
    main()
