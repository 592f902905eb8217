"""Buckets for the chaos rounds: moto's S3 server, and the server of `bucket.py` with the protocol of Google Cloud."""

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from factory.dataset.storage import Store
from tests.support.bucket import Bucket, serving


def bucket_hashes(address: str) -> dict[str, str]:
    """The SHA-256 of every shard and manifest in a bucket by name."""
    store = Store(address)
    names = [name for folder in ("train", "manifest") for name in store.list(folder)]
    return {name: hashlib.sha256(store.get(name) or b"").hexdigest() for name in names}


@contextlib.contextmanager
def buckets(kind: str, seed: int) -> Iterator[Bucket]:
    """A bucket with faults: of moto behind a proxy, or of the server of `bucket.py`."""
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(moto()) if kind == "s3" else None
        bucket = stack.enter_context(serving(Bucket(upstream=upstream, seed=seed)))
        before = dict(os.environ)
        os.environ |= bucket.environment()
        stack.callback(lambda: (os.environ.clear(), os.environ.update(before)))
        yield bucket


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """Run moto's S3 server with an empty bucket `chaos`; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                with contextlib.suppress(URLError, ConnectionError), make_bucket(f"{url}/chaos"):
                    break
                if server.poll() is not None:
                    raise SystemExit("moto does not start; install it with `pip install 'moto[s3,server]'`")
                time.sleep(0.1)
            else:
                raise SystemExit("moto did not answer for a minute")
            yield url
        finally:
            server.kill()


def make_bucket(url: str) -> HTTPResponse:
    """Create the bucket; returns the response, or raises SystemExit if the server refuses."""
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request"}
    try:
        answer: HTTPResponse = urlopen(Request(url, method="PUT", headers=signed))
    except HTTPError as error:
        raise SystemExit(f"moto does not make the bucket: {error.read().decode()}") from None
    return answer
