"""The command `factory` as a separate process, and the bytes of the datasets that it writes."""

import hashlib
import subprocess
import sys
from pathlib import Path

PROGRAM = [sys.executable, "-m", "factory"]


def factory(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every shard and manifest by name."""
    files = sorted([*folder.glob("train/*.tar"), *folder.glob("manifest/*.parquet")])
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
