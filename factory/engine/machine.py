"""What this machine gives a local cluster: usable cores, and a temporary folder short enough for sockets."""

import os
from pathlib import Path

from factory.errors import UserError

_LONGEST_SOCKET = 107
"""Bytes in the path of a Unix socket, without the closing zero."""
_SESSION = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"


def usable_cpus() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group (a container, a batch job)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def _quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Cores granted by the control groups above this process, version 2 or 1; None without a limit."""
    try:
        rows = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return None
    found: list[float] = []
    for _, controllers, path in rows:
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        folder = base / path.lstrip("/")
        for place in (folder, *folder.parents):
            limit = _limit(place)
            if limit is not None:
                found.append(limit)
            if place == base:
                break
    return min(found, default=None)


def _limit(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            granted, period = (folder / "cpu.max").read_text().split()
        else:
            granted = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return float(granted) / float(period) if granted != "max" and float(granted) > 0 else None
    except (OSError, ValueError):
        return None


def session_folder() -> str | None:
    """Folder for Ray's sockets and logs where Ray's own choice would be too long; None where that is fine.

    Ray puts its sockets below RAY_TMPDIR or TMPDIR, and the path of a Unix socket has at most 107 bytes. UserError
    where RAY_TMPDIR is too long, or /tmp cannot be written instead.
    """
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(os.path.join(chosen, _SESSION))) <= _LONGEST_SOCKET:
        return None
    longest = _LONGEST_SOCKET - len(_SESSION) - 1
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    if name == "TMPDIR" and os.access("/tmp", os.W_OK | os.X_OK):
        return "/tmp/ray"
    raise UserError(
        f"{name} is {chosen}, {len(os.fsencode(chosen))} bytes long; Ray puts sockets there, whose paths have a limit, "
        f"so that it can have at most {longest}: set RAY_TMPDIR to a shorter folder."
    )
