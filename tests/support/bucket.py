"""An in-memory bucket with an HTTP server for the S3 and Google Cloud protocols, with fault injection.

Used by tests, benchmarks and chaos runs. With `upstream` it is a proxy in front of another S3 server, to inject faults
into a real implementation.
"""

import asyncio
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from tests.support.bucket_objects import Objects, Request, Response, error_response

Kind = Literal["status", "reset", "lost", "cut", "stall", "throttle", "outage"]
_CODES = {403: "AccessDenied", 404: "NoSuchBucket"}


@dataclass
class Fault:
    """A fault for requests whose line, such as "PUT /bucket/name", matches; `times=None` means always.

    status: respond with `code`, and with `reason` as the code in the body; reset: close before executing; lost:
    execute, then close; cut: send half of the response, then close; stall: respond after `seconds`; throttle: read the
    body at `rate` bytes per second, or within `seconds` if given; outage: close every connection for `seconds` from now
    on.
    """

    kind: Kind
    match: str = ""
    times: int | None = 1
    seconds: float = 0.0
    code: int = 503
    rate: float = 0.0
    chance: float = 1.0
    reason: str = ""
    since: float = field(default_factory=time.monotonic)

    def hits(self, line: str, rng: random.Random) -> bool:
        """Whether the fault applies to this request; decrements `times`."""
        if self.kind == "outage" and time.monotonic() - self.since > self.seconds:
            return False
        if self.times == 0 or not re.search(self.match, line) or rng.random() >= self.chance:
            return False
        self.times = None if self.times is None else self.times - 1
        return True


class Bucket(Objects):
    """The server. `faults` and `latency` may change."""

    def __init__(self, upstream: str | None = None, seed: int = 0) -> None:
        super().__init__()
        self.latency, self.faults = 0.0, list[Fault]()
        self.requests: Counter[str] = Counter()
        self.endpoint = ""
        self._upstream, self._rng = upstream, random.Random(seed)

    def environment(self) -> dict[str, str]:
        """Environment variables that direct s3:// and gs:// to this server, with fake credentials."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test-access-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret-key",
            "GOOGLE_BASE_URL": self.endpoint,
            "GOOGLE_BEARER_TOKEN": "test-token",
            "GOOGLE_ALLOW_HTTP": "true",
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            while request := await self._read(reader, writer):
                await self._respond(request, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client disconnected, or the server is stopping
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        length, line = int(headers.get("content-length", 0)), f"{method} {target}"
        slow = next((fault for fault in self.faults if fault.kind == "throttle" and fault.hits(line, self._rng)), None)
        if slow is None:
            return Request(method, target, headers, await reader.readexactly(length) if length else b"")
        self.requests[f"{method} throttle"] += 1
        rate, parts = length / slow.seconds if slow.seconds else slow.rate, list[bytes]()
        while length:
            parts.append(await reader.readexactly(min(length, 65536, max(1, int(rate / 2)))))
            length -= len(parts[-1])
            await asyncio.sleep(len(parts[-1]) / rate)
        return Request(method, target, headers, b"".join(parts))

    async def _respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
        hit = (fault for fault in self.faults if fault.kind != "throttle" and fault.hits(request.line, self._rng))
        fault = next(hit, None)
        kind = fault.kind if fault else None
        self.requests[f"{request.method} {kind}" if kind else request.method] += 1
        if kind in ("reset", "outage"):
            writer.transport.abort()
            raise ConnectionAbortedError
        if self.latency:
            await asyncio.sleep(self.latency)
        if fault and kind == "stall":
            await asyncio.sleep(fault.seconds)
        if fault and kind == "status":
            response = error_response(fault.code, fault.reason or _CODES.get(fault.code, "SlowDown"))
        elif self._upstream:
            response = await self._forward(request)
        else:
            response = self.execute(request)
        if kind == "lost":
            writer.transport.abort()
            raise ConnectionAbortedError
        sent = response.body if request.method != "HEAD" else b""
        length = response.headers.get("content-length", str(len(response.body)))
        lines = [f"HTTP/1.1 {response.status} -", f"content-length: {length}"]
        lines += [f"{name}: {value}" for name, value in response.headers.items() if name != "content-length"]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        writer.write(sent[: len(sent) // 2] if kind == "cut" else sent)
        await writer.drain()
        if kind == "cut":
            await asyncio.sleep(0.05)
            writer.transport.abort()
            raise ConnectionAbortedError

    async def _forward(self, request: Request) -> Response:
        assert self._upstream is not None
        url = urlsplit(self._upstream)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        headers = {name: value for name, value in request.headers.items() if name not in ("connection", "expect")}
        lines = [f"{request.line} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1") + request.body)
        await writer.drain()
        head, _, rest = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        first, *fields = head.decode("latin-1").split("\r\n")
        response_headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in fields)}
        response_headers.pop("connection", None)
        return Response(int(first.split(" ")[1]), response_headers, rest)


@contextmanager
def serving(bucket: Bucket) -> Iterator[Bucket]:
    """Run the server in a thread within a `with` block."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(bucket.serve, "127.0.0.1", 0, backlog=1024))
    bucket.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever, name="bucket", daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        asyncio.run_coroutine_threadsafe(_stop(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _stop(server: asyncio.Server) -> None:
    server.close()
    current = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks() if task is not current]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
