"""Where a store finds its endpoint, region and credentials; nothing is connected to."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from factory.config.sections import StoreRecipe
from factory.dataset.storage import Store
from factory.dataset.storage_access import Access, find_access
from factory.dataset.storage_listing import list_bucket
from factory.errors import UserError


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any credentials."""
    import os

    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def access(address: str, **settings: object) -> Access:
    return find_access(address, StoreRecipe.model_validate(settings))


def test_azure_takes_its_account_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    found = access("az://container/set", endpoint="https://azure.example")
    assert found.config == {
        "azure_storage_account_name": "account",
        "azure_storage_endpoint": "https://azure.example",
    }


def test_public_bucket_needs_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    found = access("s3://b/set", anonymous=True, virtual_hosted=True, region="eu-x")
    assert found.keys is None
    assert found.config == {
        "aws_region": "eu-x",
        "aws_virtual_hosted_style_request": "true",
        "aws_skip_signature": "true",
    }
    assert access("s3://b/set").keys == ("key", "", "")


def test_google_accepts_an_endpoint_and_credentials_of_users(tmp_path: Path) -> None:
    (tmp_path / "user.json").write_text('{"type": "authorized_user"}')
    found = access("gs://b/set", endpoint="https://google.example", credentials_file=str(tmp_path / "user.json"))
    assert found.config == {
        "google_base_url": "https://google.example",
        "google_application_credentials": str(tmp_path / "user.json"),
    }


def test_options_of_the_client_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.pem").write_bytes(b"certificate")
    monkeypatch.setenv("AWS_PROXY_URL", "http://proxy")
    monkeypatch.setenv("AWS_ALLOW_INVALID_CERTIFICATES", "true")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    client = access("s3://b/set").client
    assert client["proxy_url"] == "http://proxy"
    assert client["allow_invalid_certificates"] is True
    assert client["root_certificate"] == b"certificate"
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    with pytest.raises(UserError, match=r"AWS_CA_BUNDLE is .*missing\.pem, which cannot be read: No such file"):
        access("s3://b/set")


def test_broken_aws_file_is_reported_without_its_content(tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text("aws_secret_access_key = very-secret\n")
    with pytest.raises(UserError, match="is not a valid AWS configuration file") as error:
        access("s3://b/set")
    assert "very-secret" not in str(error.value)


@pytest.mark.parametrize("address", ["s3://b/set#1", "gs://b/set#v2/part", "az://b/#set"])
def test_address_with_a_fragment_is_rejected(address: str) -> None:
    """The client ignores it, so two datasets would be one."""
    with pytest.raises(UserError, match=f"the address {address} contains a #"):
        Store(address)


@pytest.mark.parametrize("address", ["s3://[bucket/set", "s3://bucket]/set", "s3://[::1/set"])
def test_malformed_address_is_rejected(address: str) -> None:
    with pytest.raises(UserError, match="is not a valid URL"):
        Store(address)


class UnorderedClient:
    """Lists names in an order of its own, in two pages, the second of which cannot be read the first time."""

    def __init__(self) -> None:
        self.failures = 1

    def list(self, prefix: str, offset: str | None, chunk_size: int) -> Iterator[list[dict[str, Any]]]:
        pages = ["receipts/000003.json", "receipts/010001.json"], ["receipts/000001.json", "receipts/010000.json"]
        for number, page in enumerate(pages):
            if number == 1 and self.failures:
                self.failures -= 1
                raise TimeoutError
            yield [{"path": name, "size": 1, "e_tag": "1"} for name in page if name > (offset or "")]


def test_buckets_without_order_are_listed_completely(monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory buckets of S3 Express; a shard that a listing omits would be generated again."""
    assert access("s3://b/set").lists_in_order
    monkeypatch.setenv("AWS_S3_EXPRESS", "true")
    in_order = access("s3://b--use1-az4--x-s3/set").lists_in_order
    assert not in_order
    client = UnorderedClient()

    def run(action: Callable[[Any], None]) -> None:
        with contextlib.suppress(TimeoutError):
            action(client)
            return
        action(client)

    found = list_bucket(run, "s3", "receipts", bounds=["receipts/01"], in_order=in_order)
    assert sorted(found) == [f"receipts/{number:06d}.json" for number in (1, 3, 10_000, 10_001)]
