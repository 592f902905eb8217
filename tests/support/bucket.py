"""An in-memory bucket with an HTTP server for the S3 and Google Cloud protocols, with fault injection.

Used by tests, benchmarks and chaos runs. With `upstream` it is a proxy in front of another S3 server, to inject faults
into a real implementation.
"""

import asyncio
import hashlib
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

Kind = Literal["status", "reset", "lost", "cut", "stall", "throttle", "outage"]
_WRITTEN = "2026-01-01T00:00:00.000Z"
_CODES = {403: "AccessDenied", 404: "NoSuchBucket"}
_HTTP_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"


@dataclass
class Fault:
    """A fault for requests whose line, such as "PUT /bucket/name", matches; `times=None` means always.

    status: respond with `code`; reset: close before executing; lost: execute, then close; cut: send half of the
    response, then close; stall: respond after `seconds`; throttle: read the body at `rate` bytes per second, or within
    `seconds` if given; outage: close every connection for `seconds` from now on.
    """

    kind: Kind
    match: str = ""
    times: int | None = 1
    seconds: float = 0.0
    code: int = 503
    rate: float = 0.0
    chance: float = 1.0
    since: float = field(default_factory=time.monotonic)

    def hits(self, line: str, rng: random.Random) -> bool:
        """Whether the fault applies to this request; decrements `times`."""
        if self.kind == "outage" and time.monotonic() - self.since > self.seconds:
            return False
        if self.times == 0 or not re.search(self.match, line) or rng.random() >= self.chance:
            return False
        self.times = None if self.times is None else self.times - 1
        return True


@dataclass(frozen=True)
class _Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def line(self) -> str:
        return f"{self.method} {self.target}"


@dataclass(frozen=True)
class _Response:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Bucket:
    """The server. `faults` and `latency` may change; `objects` maps "bucket/name" to (bytes, generation)."""

    def __init__(self, upstream: str | None = None, seed: int = 0) -> None:
        self.latency, self.faults = 0.0, list[Fault]()
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.requests: Counter[str] = Counter()
        self.ignores_conditions = False
        """Whether conditional writes overwrite, as with some S3-compatible servers."""
        self.endpoint = ""
        self._upstream, self._rng = upstream, random.Random(seed)
        self._generation = 1000
        self._parts: dict[str, dict[int, bytes]] = {}
        self._sorted: list[str] | None = None

    def put(self, name: str, data: bytes) -> int:
        """Store an object; returns its generation."""
        self._generation += 1
        if name not in self.objects:
            self._sorted = None
        self.objects[name] = data, self._generation
        return self._generation

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

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Request | None:
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
            return _Request(method, target, headers, await reader.readexactly(length) if length else b"")
        self.requests[f"{method} throttle"] += 1
        rate, parts = length / slow.seconds if slow.seconds else slow.rate, list[bytes]()
        while length:
            parts.append(await reader.readexactly(min(length, 65536, max(1, int(rate / 2)))))
            length -= len(parts[-1])
            await asyncio.sleep(len(parts[-1]) / rate)
        return _Request(method, target, headers, b"".join(parts))

    async def _respond(self, request: _Request, writer: asyncio.StreamWriter) -> None:
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
            response = _error(fault.code, _CODES.get(fault.code, "SlowDown"))
        elif self._upstream:
            response = await self._forward(request)
        else:
            response = self._execute(request)
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

    def _execute(self, request: _Request) -> _Response:
        url = urlsplit(request.target)
        name, query = unquote(url.path).lstrip("/"), parse_qs(url.query, keep_blank_values=True)
        bucket, _, key = name.partition("/")
        if request.method == "POST" and "delete" in query:
            return self._delete_many(bucket, request.body)
        if request.method == "POST" or "partNumber" in query:
            return self._put_in_parts(name, request, query)
        if request.method == "GET" and not key:
            return self._list(bucket, {field: values[0] for field, values in query.items()})
        if request.method == "PUT":
            return self._put(name, request)
        if name not in self.objects:
            return _error(404, "NoSuchKey")
        if request.method == "DELETE":
            del self.objects[name]
            self._sorted = None
            return _Response(204)
        return _Response(200, self._metadata(name), self.objects[name][0])

    def _put(self, name: str, request: _Request) -> _Response:
        existing = self.objects.get(name)
        generation = request.headers.get("x-goog-if-generation-match")
        refused = not self.ignores_conditions and (
            (generation is not None and generation != str(existing[1] if existing else 0))
            or (request.headers.get("if-none-match") == "*" and existing is not None)
            or (
                "if-match" in request.headers and (existing is None or request.headers["if-match"] != _tag(existing[0]))
            )
        )
        if refused:
            return _error(412, "PreconditionFailed")
        self.put(name, request.body)
        return _Response(200, self._metadata(name))

    def _metadata(self, name: str) -> dict[str, str]:
        data, generation = self.objects[name]
        return {"etag": _tag(data), "x-goog-generation": str(generation), "last-modified": _HTTP_DATE}

    def _put_in_parts(self, name: str, request: _Request, query: dict[str, list[str]]) -> _Response:
        """A multipart upload: its start, one of its parts, or its end."""
        if "uploads" in query:
            text = f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
            return _Response(200, {"content-type": "application/xml"}, text.encode())
        parts = self._parts.setdefault(name, {})
        if request.method == "PUT":
            parts[int(query["partNumber"][0])] = request.body
            return _Response(200, {"etag": _tag(request.body)})
        self.put(name, b"".join(data for _, data in sorted(self._parts.pop(name).items())))
        tag = escape(_tag(self.objects[name][0]))
        text = f"<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
        return _Response(200, {"content-type": "application/xml"}, text.encode())

    def _delete_many(self, bucket: str, body: bytes) -> _Response:
        keys = list[str](re.findall(r"<Key>(.*?)</Key>", body.decode()))
        for key in keys:
            self.objects.pop(f"{bucket}/{key}", None)
        self._sorted = None
        entries = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        return _Response(200, {"content-type": "application/xml"}, f"<DeleteResult>{entries}</DeleteResult>".encode())

    def _list(self, bucket: str, query: dict[str, str]) -> _Response:
        """A page of at most 1,000 names, like both services."""
        if self._sorted is None:
            self._sorted = sorted(self.objects)
        prefix, after = f"{bucket}/{query.get('prefix', '')}", query.get("continuation-token", query.get("start-after"))
        if "delimiter" in query:
            return self._list_folders(prefix, bucket, query["delimiter"])
        first = f"{bucket}/{after}" if after else ""
        page, truncated = list[str](), False
        for name in self._names_from(max(prefix, first)):
            if not name.startswith(prefix):
                break
            if name == first:
                continue
            if len(page) == 1000:
                truncated = True
                break
            page.append(name)
        entries = "".join(self._entry(name, name.removeprefix(f"{bucket}/")) for name in page)
        last = page[-1].removeprefix(f"{bucket}/") if truncated else ""
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if truncated else ""
        text = (
            f'<?xml version="1.0"?><ListBucketResult><Name>{bucket}</Name><Prefix></Prefix>'
            f"<KeyCount>{len(page)}</KeyCount><IsTruncated>{str(truncated).lower()}</IsTruncated>{token}{entries}"
            f"</ListBucketResult>"
        )
        return _Response(200, {"content-type": "application/xml"}, text.encode())

    def _list_folders(self, prefix: str, bucket: str, delimiter: str) -> _Response:
        """The folders directly below a prefix, on one page."""
        names = (name.removeprefix(prefix) for name in self.objects if name.startswith(prefix))
        folders = sorted({name.partition(delimiter)[0] for name in names if delimiter in name})
        start = prefix.removeprefix(f"{bucket}/")
        entries = "".join(
            f"<CommonPrefixes><Prefix>{escape(start + name)}/</Prefix></CommonPrefixes>" for name in folders
        )
        text = f"<ListBucketResult><Name>{bucket}</Name><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        return _Response(200, {"content-type": "application/xml"}, text.encode())

    def _names_from(self, first: str) -> Iterator[str]:
        from bisect import bisect_left

        assert self._sorted is not None
        for index in range(bisect_left(self._sorted, first), len(self._sorted)):
            yield self._sorted[index]

    def _entry(self, name: str, key: str) -> str:
        data, generation = self.objects[name]
        return (
            f"<Contents><Key>{escape(key)}</Key><LastModified>{_WRITTEN}</LastModified><Generation>{generation}"
            f"</Generation><ETag>{escape(_tag(data))}</ETag><Size>{len(data)}</Size></Contents>"
        )

    async def _forward(self, request: _Request) -> _Response:
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
        return _Response(int(first.split(" ")[1]), response_headers, rest)


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


def _tag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _error(status: int, code: str) -> _Response:
    # On two lines, like the real services.
    text = f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>{code}</Message></Error>'
    return _Response(status, {"content-type": "application/xml"}, text.encode())
