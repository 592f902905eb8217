"""Captures standard output and error of the workers for error reports and log files."""

import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

_LINES_PER_WORKER = 400
_MAX_WORKERS = 256
_MAX_LINE_LENGTH = 2000
_MAX_TEXT = 8 << 20
"""Characters of `WorkerLogs.text`: the size of a log file."""


class WorkerLogs:
    """The last lines of each worker, by node address and process id. Memory is bounded, however much they print."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: OrderedDict[tuple[str, str], deque[str]] = OrderedDict()

    def clear(self) -> None:
        """Drop all lines, for a new cluster."""
        with self._lock:
            self._lines.clear()

    def add(self, data: dict[str, Any]) -> None:
        """Store lines as sent by Ray's log monitor, except the autoscaler's reports; called from its thread."""
        if data.get("pid") == "autoscaler":  # it repeats the state of the cluster every five seconds
            return
        worker = (str(data.get("ip") or ""), str(data.get("pid")))
        with self._lock:
            lines = self._lines.setdefault(worker, deque(maxlen=_LINES_PER_WORKER))
            self._lines.move_to_end(worker)
            lines.extend(str(line)[:_MAX_LINE_LENGTH] for line in data.get("lines", []))
            while len(self._lines) > _MAX_WORKERS:
                self._lines.popitem(last=False)

    def tail(self, ip: str, pid: str, lines: int = 20) -> str:
        """The last lines of one worker; empty if it wrote nothing."""
        with self._lock:
            return "\n".join(list(self._lines.get((ip, pid), ()))[-lines:])

    def text(self) -> str:
        """The stored lines, grouped by worker; at most 8 MiB, of which each worker gets an equal part."""
        with self._lock:
            workers = [(name, "\n".join(lines)) for name, lines in self._lines.items() if lines]
        share = _MAX_TEXT // max(1, len(workers))
        # Ray reports lost workers and nodes itself, without the address of a node.
        names = [f"{ip}, process {pid}" if ip else "messages of Ray" for (ip, pid), _ in workers]
        parts = [f"== {name}\n{text[-share:]}" for name, (_, text) in zip(names, workers, strict=True)]
        return "\n".join(parts) + "\n" if parts else ""


LOGS = WorkerLogs()
"""The output of the workers in the cluster that this process is connected to."""


@contextlib.contextmanager
def captured(printed: bool) -> Iterator[None]:
    """Capture the workers' output for the duration of the `with`; with `printed`, Ray prints it as well.

    The lines come from the log monitor of each node, so output of a dead worker arrives too. A driver connected through
    ray:// receives none; Ray keeps the logs on the nodes, in /tmp/ray/session_latest/logs. Without `printed`, messages
    of Ray's daemons about lost workers are kept away from standard output, which is for results.
    """
    from ray._private import worker
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    LOGS.clear()
    before = worker.print_to_stdstream
    if not printed:
        dispatcher.remove_handler("ray_print_logs")
        worker.print_to_stdstream = lambda data, ignore_prefix: LOGS.add(data)
    dispatcher.remove_handler("factory")
    dispatcher.add_handler("factory", LOGS.add)
    try:
        yield
    finally:
        dispatcher.remove_handler("factory")
        worker.print_to_stdstream = before
