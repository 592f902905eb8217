"""Azure Blob Storage: the same dataset on Azurite, Microsoft's emulator, as in a folder."""

import base64
import hashlib
import hmac
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from factory.dataset.storage import Store
from factory.dataset.verify import verify
from factory.errors import UserError
from tests.support.program import PROGRAM

pytestmark = pytest.mark.azure
AZURITE = Path(__file__).parents[1] / "build/azurite/node_modules/.bin/azurite-blob"
ACCOUNT = "devstoreaccount1"
PUBLISHED_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The key of every Azurite, from its documentation."""


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running Azurite with the container `box`."""
    assert AZURITE.exists(), "Azurite is not installed; `make test-azure` installs it"
    folder = tmp_path_factory.mktemp("azurite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(AZURITE), "--silent", "--location", str(folder), "--blobPort", str(port), "--skipApiVersionCheck",
               "--disableTelemetry"]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}/{ACCOUNT}"
        _create_container(address, "box")
        yield address
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(autouse=True)
def account(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", PUBLISHED_KEY)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", endpoint)
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")


def _create_container(address: str, name: str) -> None:
    """Create a container, signed with the shared key; waits until the server answers."""
    for attempt in range(100):
        date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        signed = f"PUT{chr(10) * 12}x-ms-date:{date}\nx-ms-version:2021-08-06\n{resource}"
        digest = hmac.new(base64.b64decode(PUBLISHED_KEY), signed.encode(), hashlib.sha256).digest()
        headers = {
            "x-ms-date": date,
            "x-ms-version": "2021-08-06",
            "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}",
            "Content-Length": "0",
        }
        request = urllib.request.Request(f"{address}/{name}?restype=container", method="PUT", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except ConnectionRefusedError:
            time.sleep(0.2)
        except OSError as error:
            if attempt == 99 or not isinstance(getattr(error, "reason", None), ConnectionRefusedError):
                raise
            time.sleep(0.2)


def test_writes_are_conditional() -> None:
    store = Store("az://box/conditional")
    assert store.create("a", b"1")
    assert not store.create("a", b"2")
    assert store.compare_and_swap("a", b"3", b"1")
    assert not store.compare_and_swap("a", b"4", b"1")
    assert store.get("a") == b"3"
    large = os.urandom(12_000_000)  # in several blocks
    assert store.create("large", large)
    assert store.get("large") == large
    assert sorted(store.list("")) == ["a", "large"]
    store.delete("a")
    assert store.get("a") is None


def test_a_missing_container_and_an_endpoint_without_tls_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="does not exist; create it"):
        Store("az://nowhere/data").create("a", b"1")
    monkeypatch.delenv("AZURE_ALLOW_HTTP")
    with pytest.raises(UserError, match=r"is not encrypted; use https://, .*AZURE_ALLOW_HTTP=true"):
        Store("az://box/data").create("a", b"1")


def test_a_dataset_on_azure_has_the_bytes_of_one_in_a_folder(tiny_model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    generator = {"model": str(tiny_model), "steps": 2, "solver": "ddim", "dtype": "float32"}
    recipe.write_text(
        yaml.safe_dump({"classes": "voc", "n": 8, "shard_size": 4, "generator": generator, "engine": {"workers": 1}})
    )
    for out in ("az://box/dataset", str(tmp_path / "dataset")):
        command = [*PROGRAM, "generate", "--recipe", str(recipe), "--shards", out]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
    remote, local = Store("az://box/dataset"), Store(str(tmp_path / "dataset"))
    names = [*local.list("train"), *local.list("manifest")]
    assert len(names) == 4
    assert [remote.get(name) for name in names] == [local.get(name) for name in names]
    remote.delete("receipts/000001.json")
    remote.delete("train/000001.tar")
    command = [*PROGRAM, "generate", "--shards", "az://box/dataset"]
    subprocess.run(command, capture_output=True, check=True, timeout=300)
    assert verify(remote).sound
    assert [remote.get(name) for name in names] == [local.get(name) for name in names]
