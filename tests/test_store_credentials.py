"""Credentials and clocks of a bucket: what is passed to workers, what expires, and what is never shown."""

import dataclasses
import os
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
from obstore.exceptions import GenericError

from factory.config.sections import StoreRecipe
from factory.dataset.storage import Store
from factory.dataset.storage_errors import translated_errors
from factory.dataset.storage_retry import is_temporary
from factory.engine.environment import adopt
from factory.errors import StoreUnavailableError, TransientError, UserError
from tests.support.bucket import Bucket, Fault

pytestmark = pytest.mark.usefixtures("home")

SECRET = "test-secret-key"


@pytest.mark.parametrize("code", [400, 401, 403])
def test_refusal_fails_immediately(bucket: Bucket, code: int) -> None:
    bucket.faults[:] = [Fault("status", times=None, code=code)]
    with pytest.raises(UserError, match=f"cannot use s3://b/set/a: .*{code}") as raised:
        Store("s3://b/set").get("a")
    assert not isinstance(raised.value, StoreUnavailableError)
    assert sum(bucket.requests.values()) == 1


def test_wrong_clock_is_retried_and_named(bucket: Bucket, address: str) -> None:
    """One host of a cluster must not end the run before its clock is set."""
    skewed = Fault("status", times=2, code=403, reason="RequestTimeTooSkewed")
    store = Store(address, StoreRecipe(patience=0.5))
    bucket.faults[:] = [skewed]
    assert store.create("a", b"1")
    bucket.faults[:] = [dataclasses.replace(skewed, times=None)]
    with pytest.raises(StoreUnavailableError, match=rf"rejected the clock of {socket.gethostname()} .*; set the clock"):
        store.list("")


@pytest.mark.parametrize(("code", "reason"), [(400, "ExpiredToken"), (403, "ExpiredToken"), (401, "AccessDenied")])
def test_credentials_that_expire_during_a_run_are_not_bad_input(
    bucket: Bucket, address: str, code: int, reason: str
) -> None:
    """The same command continues with new ones: code 75 and no pause, because those of the run never change."""
    expired = Fault("status", times=None, code=code, reason=reason)
    store = Store(address)
    store.put("a", b"1")
    for operation in (lambda: store.get("a"), lambda: store.create("b", b"1"), lambda: store.list("")):
        bucket.faults[:] = [expired]
        with pytest.raises(TransientError, match=r"the credentials have expired .*Renew .* to resume\.$") as raised:
            operation()
        assert not isinstance(raised.value, StoreUnavailableError), "the run ends instead of repeating the shard"
    assert (bucket.requests["GET status"], bucket.requests["PUT status"]) == (2, 1)
    with pytest.raises(UserError) as raised_first:
        Store(address).get("a")
    assert not isinstance(raised_first.value, TransientError), "they were never valid"
    assert ("have expired" in str(raised_first.value)) == (reason == "ExpiredToken")


def test_pickled_store_contains_the_access(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("s3://b/set", "gs://b/set"):
        for name, value in bucket.environment().items():
            monkeypatch.setenv(name, value)
        Store(address).put("a", b"1")
        carried = pickle.dumps(Store(address))
        for name in bucket.environment():
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SESSION_TOKEN", "of-the-worker")
        assert pickle.loads(carried).get("a") == b"1"


def test_workers_take_secrets_that_look_like_paths_and_no_paths_of_other_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in 64 secret keys of AWS begins with a slash."""
    of_the_driver = {
        "AWS_SECRET_ACCESS_KEY": "/wJalrXUtnFEMI/K7MDENG",
        "AZURE_STORAGE_ACCOUNT_KEY": "/Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFs==",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/credentials",
        "AWS_CONFIG_FILE": str(tmp_path),
    }
    paths_elsewhere = (
        "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT",
        "AZURE_CONFIG_DIR",
    )  # fmt: skip
    for name in (*of_the_driver, *paths_elsewhere):
        monkeypatch.setenv(name, "of this node")
    adopt(of_the_driver | dict.fromkeys(paths_elsewhere, "/nowhere"))
    assert {name: os.environ[name] for name in of_the_driver} == of_the_driver
    assert {os.environ[name] for name in paths_elsewhere} == {"of this node"}


def test_aws_profile(bucket: Bucket, tmp_path: Path, monkeypatch: Any) -> None:
    for name in bucket.environment():
        monkeypatch.delenv(name)
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/config").write_text(f"[profile lab]\nregion = eu-x\nendpoint_url = {bucket.endpoint}\n")
    (tmp_path / ".aws/credentials").write_text("[lab]\naws_access_key_id = AKLAB\naws_secret_access_key = abcdefgh\n")
    store = Store("s3://b/set", StoreRecipe(profile="lab", allow_http=True))
    store.put("a", b"1")
    assert store.get("a") == b"1"
    with pytest.raises(UserError, match="there is no AWS profile lap"):
        Store("s3://b/set", StoreRecipe(profile="lap")).get("a")
    (tmp_path / ".aws/config").write_text("[profile sso]\nsso_session = x\n")
    with pytest.raises(UserError, match="the AWS profile sso has no access key; log in and export"):
        Store("s3://b/set", StoreRecipe(profile="sso")).get("a")


def test_google_key_file_is_pickled_by_content(bucket: Bucket, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
    monkeypatch.delenv("GOOGLE_BASE_URL")
    key = tmp_path / "key.json"
    key.write_text(
        f'{{"gcs_base_url": "{bucket.endpoint}", "disable_oauth": true, "client_email": "", "private_key": "", '
        f'"private_key_id": ""}}'
    )
    carried = pickle.dumps(Store("gs://b/set", StoreRecipe(credentials_file=str(key))))
    key.unlink()
    store = pickle.loads(carried)
    store.put("a", b"1")
    assert store.get("a") == b"1"
    with pytest.raises(UserError, match="is not a readable JSON key file"):
        Store("gs://b/set", StoreRecipe(credentials_file=str(key))).get("a")


def test_endpoint_without_tls_requires_opt_in(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    monkeypatch.delenv("GOOGLE_ALLOW_HTTP")
    with pytest.raises(UserError, match="is not encrypted; use https://, or allow it with AWS_ALLOW_HTTP"):
        Store("s3://b/set").get("a")
    assert Store("s3://b/set", StoreRecipe(allow_http=True)).get("a") is None
    monkeypatch.setenv("AWS_ALLOW_HTTP", "yes")
    assert Store("s3://b/set").get("a") is None, "one of the spellings that the client understands"


def test_credentials_are_never_shown(bucket: Bucket) -> None:
    store = Store("s3://b/set")
    assert store.get("a") is None
    assert SECRET not in repr(store._requests.access()) + repr(vars(store)) + repr(vars(store._requests))
    assert store.hide(f"x {SECRET} y") == "x *** y"
    bucket.faults[:] = [Fault("status", times=None, code=403)]
    with pytest.raises(UserError) as raised:
        store.create("a", b"1")
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None
    for address in ("https://me:hunter22@host/set", "s3://key:hunter22@b/set", "https://host/set?sig=hunter22"):
        with pytest.raises(UserError, match="give the plain URL") as raised:
            Store(address)
        assert "hunter22" not in str(raised.value)


@pytest.mark.parametrize("proven", [False, True])
def test_a_bucket_without_credentials_says_so(proven: bool) -> None:
    """The message named only the address at which the client looks for the role of the machine."""
    text = "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1ms - HTTP error: request"
    error = GenericError(text)
    assert is_temporary(error, proven) is proven
    expected = r"cannot use s3://b/x: no valid credentials were found \(.*\)\. Set them as docs/storage.md describes\."
    with pytest.raises(UserError, match=expected), translated_errors("s3://b/x", True, False, str):
        raise error
