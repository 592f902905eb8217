"""The objects of a bucket in memory, and the requests of the S3 and Google Cloud protocols that read and write them."""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_WRITTEN = "2026-01-01T00:00:00.000Z"
_HTTP_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"


@dataclass(frozen=True)
class Request:
    """An HTTP request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def line(self) -> str:
        """As in faults: "PUT /bucket/name"."""
        return f"{self.method} {self.target}"


@dataclass(frozen=True)
class Response:
    """An HTTP response."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Objects:
    """Executes requests; `objects` maps "bucket/name" to (bytes, generation)."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.ignores_conditions = False
        """Whether conditional writes overwrite, as with some S3-compatible servers."""
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

    def execute(self, request: Request) -> Response:
        """The response to a request, which may change the objects."""
        url = urlsplit(request.target)
        name, query = unquote(url.path).lstrip("/"), parse_qs(url.query, keep_blank_values=True)
        bucket, _, key = name.partition("/")
        if request.method == "POST" and "delete" in query:
            return self._delete_many(bucket, request.body)
        if request.method == "POST" or "partNumber" in query or "uploadId" in query:
            return self._put_in_parts(name, request, query)
        if request.method == "GET" and not key:
            return self._list(bucket, {field: values[0] for field, values in query.items()})
        if request.method == "PUT":
            return self._put(name, request)
        if name not in self.objects:
            return error_response(404, "NoSuchKey")
        if request.method == "DELETE":
            del self.objects[name]
            self._sorted = None
            return Response(204)
        return Response(200, self._metadata(name), self.objects[name][0])

    def _put(self, name: str, request: Request) -> Response:
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
            return error_response(412, "PreconditionFailed")
        self.put(name, request.body)
        return Response(200, self._metadata(name))

    def _metadata(self, name: str) -> dict[str, str]:
        data, generation = self.objects[name]
        return {"etag": _tag(data), "x-goog-generation": str(generation), "last-modified": _HTTP_DATE}

    def _put_in_parts(self, name: str, request: Request, query: dict[str, list[str]]) -> Response:
        """A multipart upload: its start, one of its parts, its end, or its cancellation."""
        if "uploads" in query:
            text = f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
            return _xml(text)
        if request.method == "DELETE":
            self._parts.pop(name, None)
            return Response(204)
        parts = self._parts.setdefault(name, {})
        if request.method == "PUT":
            parts[int(query["partNumber"][0])] = request.body
            return Response(200, {"etag": _tag(request.body)})
        self.put(name, b"".join(data for _, data in sorted(self._parts.pop(name).items())))
        tag = escape(_tag(self.objects[name][0]))
        text = f"<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
        return _xml(text)

    def _delete_many(self, bucket: str, body: bytes) -> Response:
        keys = list[str](re.findall(r"<Key>(.*?)</Key>", body.decode()))
        for key in keys:
            self.objects.pop(f"{bucket}/{key}", None)
        self._sorted = None
        entries = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        return _xml(f"<DeleteResult>{entries}</DeleteResult>")

    def _list(self, bucket: str, query: dict[str, str]) -> Response:
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
        return _xml(text)

    def _list_folders(self, prefix: str, bucket: str, delimiter: str) -> Response:
        """The folders directly below a prefix, on one page."""
        names = (name.removeprefix(prefix) for name in self.objects if name.startswith(prefix))
        folders = sorted({name.partition(delimiter)[0] for name in names if delimiter in name})
        start = prefix.removeprefix(f"{bucket}/")
        entries = "".join(
            f"<CommonPrefixes><Prefix>{escape(start + name)}/</Prefix></CommonPrefixes>" for name in folders
        )
        text = f"<ListBucketResult><Name>{bucket}</Name><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        return _xml(text)

    def _names_from(self, first: str) -> Iterator[str]:
        assert self._sorted is not None
        for index in range(bisect_left(self._sorted, first), len(self._sorted)):
            yield self._sorted[index]

    def _entry(self, name: str, key: str) -> str:
        data, generation = self.objects[name]
        return (
            f"<Contents><Key>{escape(key)}</Key><LastModified>{_WRITTEN}</LastModified><Generation>{generation}"
            f"</Generation><ETag>{escape(_tag(data))}</ETag><Size>{len(data)}</Size></Contents>"
        )


def _tag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def error_response(status: int, code: str) -> Response:
    """An error with a code such as NoSuchKey."""
    # On two lines, like the real services.
    text = f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>{code}</Message></Error>'
    return _xml(text, status)


def _xml(text: str, status: int = 200) -> Response:
    return Response(status, {"content-type": "application/xml"}, text.encode())
