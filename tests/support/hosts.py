"""Hosts on this machine, as network namespaces that only reach each other; needs Linux, root and iproute2.

A host has its own address, name, /tmp/ray, home and working folder; the file system is shared otherwise.
"""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

_SUBNET = "10.77.0"


class Hosts:
    """Creates hosts for the duration of the `with`; every process that was started on them is killed at the end."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.addresses = {name: f"{_SUBNET}.{number}" for number, name in enumerate(names, 1)}
        self._switch = f"fct{os.getpid()}"
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Hosts":
        try:
            self._create()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def start(
        self, host: str, command: Sequence[object], env: Mapping[str, str] | None = None, log: str = ""
    ) -> "subprocess.Popen[bytes]":
        """Start a command on a host in the background; its output goes to HOST.log or to `log`."""
        own = self.folder / host
        entry = (
            f"hostname {host}; mount --bind {own}/hosts /etc/hosts; mkdir -p /tmp/ray; "
            f"mount --bind {own}/ray /tmp/ray; "
            f'cd {own}/cwd; exec "$@"'
        )
        namespaces = ["nsenter", f"--net=/run/netns/{self._namespace(host)}", "unshare", "--mount", "--uts"]
        with open(self.folder / (log or f"{host}.log"), "ab") as output:
            process = subprocess.Popen(
                [*namespaces, "bash", "-c", entry, host, *map(str, command)],
                env={**os.environ, "HOME": f"{own}/home", **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def run(
        self, host: str, command: Sequence[object], env: Mapping[str, str] | None = None, timeout: float = 300
    ) -> tuple[int, str]:
        """Run a command on a host; returns its exit code and its output."""
        log = f"{host}-{time.monotonic_ns()}.log"
        code = self.start(host, command, env, log).wait(timeout)
        return code, (self.folder / log).read_text(errors="replace")

    def unplug(self, host: str) -> None:
        """Kill everything that runs on a host, as if its power failed."""
        for pid in self._pids(host):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _create(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        table = "".join(f"{address} {name}\n" for name, address in self.addresses.items())
        for name, address in self.addresses.items():
            namespace = self._namespace(name)
            _ip("netns", "add", namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
            _ip("-n", self._switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            _ip("-n", self._switch, "link", "set", name, "master", "bridge", "up")
            _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", namespace, "link", "set", "eth0", "up")
            for part in ("home", "cwd", "ray"):
                (self.folder / name / part).mkdir(parents=True, exist_ok=True)
            (self.folder / name / "hosts").write_text(f"127.0.0.1 localhost\n{table}")

    def _remove(self) -> None:
        for host in self.addresses:
            self.unplug(host)
        for process in self._started:
            process.kill()
            process.wait()
        for namespace in [*map(self._namespace, self.addresses), self._switch]:
            subprocess.run(["ip", "netns", "delete", namespace], stderr=subprocess.DEVNULL, check=False)

    def _namespace(self, host: str) -> str:
        return f"{self._switch}-{host}"

    def _pids(self, host: str) -> list[int]:
        found = subprocess.run(
            ["ip", "netns", "pids", self._namespace(host)], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in found.stdout.split()]


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(['ip', *arguments])}: {done.stderr.strip()}; this needs root and iproute2")
