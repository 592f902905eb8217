"""What the workers write to their standard output and error, kept for the run that may be asked for it."""

import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

_LINES_OF_A_WORKER = 400
_WORKERS = 256
_LONGEST_LINE = 2000


class WorkerLogs:
    """The last lines of each worker, by the address of its machine and its process id; bounded, whatever they print."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: OrderedDict[tuple[str, str], deque[str]] = OrderedDict()

    def clear(self) -> None:
        """Begin with nothing: another cluster."""
        with self._lock:
            self._lines.clear()

    def take(self, data: dict[str, Any]) -> None:
        """Keep lines as Ray's log monitor sends them; called from its thread."""
        where = (str(data.get("ip")), str(data.get("pid")))
        with self._lock:
            kept = self._lines.setdefault(where, deque(maxlen=_LINES_OF_A_WORKER))
            self._lines.move_to_end(where)
            kept.extend(str(line)[:_LONGEST_LINE] for line in data.get("lines", []))
            while len(self._lines) > _WORKERS:
                self._lines.popitem(last=False)

    def tail(self, ip: str, pid: str, lines: int = 20) -> str:
        """The last lines of one worker; empty where it wrote nothing."""
        with self._lock:
            return "\n".join(list(self._lines.get((ip, pid), ()))[-lines:])

    def text(self) -> str:
        """All that is kept, worker by worker."""
        with self._lock:
            parts = [
                f"== {ip}, process {pid}\n" + "\n".join(lines) for (ip, pid), lines in self._lines.items() if lines
            ]
        return "\n".join(parts) + "\n" if parts else ""


LOGS = WorkerLogs()
"""Of the cluster that this process is connected to."""


@contextlib.contextmanager
def kept(printed: bool) -> Iterator[None]:
    """Keep the workers' lines for the time of the `with`; `printed` leaves it to Ray to print them as well.

    They come from the log monitor of each machine, so those of a worker that died arrive too. A driver that is
    connected by ray:// gets none; Ray keeps them on the machines, in /tmp/ray/session_latest/logs. What Ray's daemons
    have to say about a lost worker would go to standard output, between this program's results.
    """
    from ray._private import worker
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    LOGS.clear()
    before = worker.print_to_stdstream
    if not printed:
        dispatcher.remove_handler("ray_print_logs")
        worker.print_to_stdstream = lambda data, ignore_prefix: LOGS.take(data)
    dispatcher.remove_handler("factory")
    dispatcher.add_handler("factory", LOGS.take)
    try:
        yield
    finally:
        dispatcher.remove_handler("factory")
        worker.print_to_stdstream = before
