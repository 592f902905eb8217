"""The resources of this machine for a local cluster: cores, a folder with a short path for sockets, and a port."""

import os
import socket
from pathlib import Path

from factory.errors import TransientError, UserError

METRICS_PORT = "FACTORY_METRICS_PORT"

_MAX_SOCKET_PATH = 107
"""Bytes in the path of a Unix socket, without the terminating null byte."""
_SESSION = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"


def usable_cpus() -> int:
    """Cores that this process may use: limited by its CPU affinity and its cgroup quota (container, batch job)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def _quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """The smallest CPU quota among the cgroups (v2 or v1) of this process, in cores; None without a limit."""
    try:
        entries = [line.split(":", 2) for line in os.fsdecode(membership.read_bytes()).splitlines()]
    except OSError:
        return None
    limits: list[float] = []
    for _, controllers, path in entries:
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents):
            limit = _limit(group)
            if limit is not None:
                limits.append(limit)
            if group == base:
                break
    return min(limits, default=None)


def _limit(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return float(quota) / float(period) if quota != "max" and float(quota) > 0 else None
    except (OSError, ValueError):
        return None


def session_folder() -> str | None:
    """Folder for Ray's sockets and logs if Ray's default path would be too long; otherwise None.

    Ray creates its sockets below RAY_TMPDIR or TMPDIR, and the path of a Unix socket has at most 107 bytes. UserError
    if RAY_TMPDIR is too long, or if TMPDIR is too long and /tmp is not writable.
    """
    parent = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(os.path.join(parent, _SESSION))) <= _MAX_SOCKET_PATH:
        return None
    longest = _MAX_SOCKET_PATH - len(_SESSION) - 1
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    if name == "TMPDIR" and os.access("/tmp", os.W_OK | os.X_OK):
        return "/tmp/ray"
    raise UserError(
        f"{name} is {parent}, {len(os.fsencode(parent))} bytes long; it may have at most {longest}, because Ray "
        f"creates Unix sockets below it: set RAY_TMPDIR to a shorter path."
    )


def metrics_port() -> int | None:
    """Port of the loopback interface on which a local cluster serves its metrics: FACTORY_METRICS_PORT; None for any.

    UserError if it is not a port, TransientError if another program uses it: Ray would not start.
    """
    text = os.environ.get(METRICS_PORT)
    if not text:
        return None
    port = int(text) if text.isdecimal() else 0
    if not 1 <= port <= 65535:
        raise UserError(f"{METRICS_PORT} must be a port from 1 to 65535, got {text!r}.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise TransientError(
                f"{METRICS_PORT} is {port}, but that port cannot be used ({error.strerror}); stop the program that "
                f"uses it, or give another port."
            ) from error
    return port
