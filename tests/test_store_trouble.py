"""Buckets in trouble: what passes is waited for, what does not gets a sentence, and no credential is ever shown."""

import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory.config.sections import StoreRecipe
from factory.dataset.receipts import tags
from factory.dataset.storage import ConflictError, Store
from factory.errors import StoreUnavailableError, UserError
from tests.support.bucket import Bucket, Fault, serving

SECRET = "test-secret-key"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(Bucket()) as bucket:
        for name, value in bucket.environment().items():
            monkeypatch.setenv(name, value)
        yield bucket


@pytest.fixture(params=["s3://b/set", "gs://b/set"])
def address(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_verb_works_on_s3_and_on_google(bucket: Bucket, address: str) -> None:
    store = Store(address)
    assert store.create("train/0.tar", b"abc")
    assert not store.create("train/0.tar", b"other")
    store.create_same("train/0.tar", b"abc")
    with pytest.raises(ConflictError):
        store.create_same("train/0.tar", b"other")
    assert (store.get("train/0.tar"), store.list("train")) == (b"abc", {"train/0.tar": 3})
    for before, after in ((None, b"1"), (b"1", b"2"), (b"2", b"3"), (b"3", b"4")):
        assert store.compare_and_swap("p", after, before), f"{before!r} -> {after!r}"
    assert not store.compare_and_swap("p", b"5", b"3")
    store.put("p", b"6")
    assert dict(store.get_many(["p", "q"])) == {"p": store.get_tagged("p"), "q": None}
    assert store.entries("train")["train/0.tar"].tag == (store.get_tagged("train/0.tar") or (b"", ""))[1]
    store.delete("p")
    store.delete("p")
    assert store.get("p") is None


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", times=1, code=500),
        Fault("status", times=2, code=503),
        Fault("status", times=1, code=429),
        Fault("reset", times=1),
        Fault("lost", times=1),
        Fault("cut", times=1),
    ],
    ids=lambda fault: f"{fault.kind}{fault.code}",
)
def test_a_request_that_fails_in_passing_is_made_again(bucket: Bucket, address: str, fault: Fault) -> None:
    store = Store(address)
    store.put("receipts/0.json", b"0" * 1000)
    for verb in (
        lambda: store.get("receipts/0.json") == b"0" * 1000,
        lambda: store.create_same("train/0.tar", b"1" * 1000) is None,
        lambda: store.compare_and_swap("lease.json", b"mine", None),
        lambda: store.compare_and_swap("lease.json", b"mine, later", b"mine"),
        lambda: store.list("receipts") == {"receipts/0.json": 1000},
        lambda: store.delete("receipts/0.json") is None,
    ):
        bucket.faults[:] = [Fault(**{**vars(fault), "since": time.monotonic()})]
        assert verb()
        assert bucket.faults[0].times == 0, "the fault was met"


def test_a_listing_that_is_cut_goes_on_where_it_was(bucket: Bucket) -> None:
    for number in range(2500):
        bucket.put(f"b/set/receipts/{number:06d}.json", b"{}")
    bucket.faults[:] = [Fault("cut", "continuation-token", times=2)]
    assert len(Store("s3://b/set").list("receipts")) == 2500
    assert bucket.requests == {"GET": 3, "GET cut": 2}, "no page that came was asked for again"


def test_a_long_listing_is_read_in_parts_at_once(bucket: Bucket, address: str, tmp_path: Path) -> None:
    """The same names come as in one piece, and parts that are cut continue; a folder and few shards have one part."""
    numbers = [*range(0, 40_000, 16), 9_999, 10_000, 20_000, 29_999]
    for number in numbers:
        bucket.put(f"b/set/receipts/{number:06d}.json", b"{}")
    bucket.faults[:] = [Fault("cut", "start-after", times=3)]
    whole = Store(address).entries("receipts")
    assert bucket.requests == {"GET": 3}, "pages"
    found = tags(Store(address), 40_000)
    assert found == {number: whole[f"receipts/{number:06d}.json"].tag for number in numbers}
    assert bucket.requests["GET cut"] == 3
    Store(str(tmp_path)).put("receipts/020000.json", b"{}")
    assert set(tags(Store(str(tmp_path)), 40_000)) == {20_000}


def test_an_outage_is_waited_for_and_told(
    bucket: Bucket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.dataset.storage_retry._WORTH_A_WORD", 0.3)
    store = Store("s3://b/set")
    assert store.create("a", b"1")
    bucket.faults[:] = [Fault("outage", times=None, seconds=2)]
    told = list[str | None]()
    watcher = threading.Timer(1.5, lambda: told.append(store.trouble))
    watcher.start()
    assert store.get("a") == b"1"
    watcher.join()
    assert told[0] is not None
    assert "does not answer" in told[0]
    assert "nothing that is committed is lost" in caplog.text
    assert store.trouble is None


def test_a_store_that_never_answers_gets_a_sentence_and_not_an_hour(bucket: Bucket) -> None:
    bucket.faults[:] = [Fault("status", times=None)]
    with pytest.raises(
        StoreUnavailableError, match=r"did not answer for 1 s: .*503.*; check the address, the endpoint"
    ):
        Store("s3://b/set", StoreRecipe(patience=1)).get("a")


def test_a_store_that_answered_before_is_waited_for_as_long_as_was_asked(bucket: Bucket) -> None:
    store = Store("s3://b/set", StoreRecipe(patience=1))
    store.put("a", b"1")
    bucket.faults[:] = [Fault("reset", times=None)]
    with pytest.raises(StoreUnavailableError, match="run the same command again when it answers"):
        pickle.loads(pickle.dumps(store)).get("a")


@pytest.mark.parametrize("code", [400, 401, 403])
def test_a_refusal_is_told_at_once(bucket: Bucket, code: int) -> None:
    bucket.faults[:] = [Fault("status", times=None, code=code)]
    with pytest.raises(UserError, match=f"cannot use s3://b/set/a: .*{code}") as told:
        Store("s3://b/set").get("a")
    assert not isinstance(told.value, StoreUnavailableError)
    assert sum(bucket.requests.values()) == 1


def test_a_bucket_that_is_not_there_is_told(bucket: Bucket, address: str) -> None:
    """By each verb, at once: a listing raises another error than the rest, and for a reader 404 is an answer."""
    bucket.faults[:] = [Fault("status", times=None, code=404)]
    store = Store(address)
    for verb in (
        lambda: store.compare_and_swap("a", b"1", None),
        lambda: store.create("a", b"1"),
        lambda: store.get("a"),
        lambda: store.list("receipts"),
    ):
        with pytest.raises(UserError, match=f"{address}/.*: there is no such bucket; make it"):
            verb()


def test_the_message_of_a_service_is_told(bucket: Bucket, address: str) -> None:
    """Their XML begins with a line of its own, so the message is in none of the client's first lines."""
    bucket.faults[:] = [Fault("status", times=None, code=403)]
    with pytest.raises(UserError, match=r"403 Forbidden: AccessDenied\. Give a folder") as told:
        Store(address).list("receipts")
    assert "<" not in str(told.value)


def test_a_slow_upload_may_take_as_long_as_its_size_allows(bucket: Bucket) -> None:
    """2 MB at 1 MB/s with a time-out of half a second for small requests: cut before, so never done."""
    bucket.faults[:] = [Fault("throttle", "PUT", times=None, rate=1e6)]
    store = Store("s3://b/set", StoreRecipe(timeout=0.5, slowest=500_000))
    assert store.create("train/0.tar", b"1" * 2_000_000)
    assert bucket.requests == {"PUT": 1, "PUT throttle": 1}


def test_a_large_file_is_one_request(bucket: Bucket, address: str) -> None:
    data = b"1" * 12_000_000
    Store(address).put("dataset.json", data)
    assert bucket.requests == {"PUT": 1}
    assert bucket.objects["b/set/dataset.json"][0] == data


def test_a_request_that_stalls_is_made_again(bucket: Bucket) -> None:
    bucket.faults[:] = [Fault("stall", seconds=30)]
    began = time.monotonic()
    assert Store("s3://b/set", StoreRecipe(timeout=0.5)).create("a", b"1")
    assert time.monotonic() - began < 5


def test_many_reads_go_on_while_one_is_slow(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.dataset.storage._READERS", 4)
    names = [f"receipts/{number}" for number in range(50)]
    for name in names:
        bucket.put(f"b/set/{name}", name.encode())
    bucket.faults[:] = [Fault("stall", "receipts/30", seconds=1)]
    for name, found in Store("s3://b/set").get_many(names):
        assert found is not None
        assert found[0] == name.encode()
        if name == "receipts/30":
            assert bucket.requests == {"GET": 49, "GET stall": 1}, "all others were answered meanwhile"


def test_workers_get_what_the_driver_has(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("s3://b/set", "gs://b/set"):
        for name, value in bucket.environment().items():
            monkeypatch.setenv(name, value)
        Store(address).put("a", b"1")
        carried = pickle.dumps(Store(address))
        for name in bucket.environment():
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SESSION_TOKEN", "of-the-worker-s-own-machine")
        assert pickle.loads(carried).get("a") == b"1"


def test_a_profile_of_the_configuration_files_is_used(bucket: Bucket, tmp_path: Path, monkeypatch: Any) -> None:
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
    with pytest.raises(UserError, match="the AWS profile sso holds no access key; log in and export"):
        Store("s3://b/set", StoreRecipe(profile="sso")).get("a")


def test_a_key_file_of_google_travels_by_its_content(bucket: Bucket, tmp_path: Path, monkeypatch: Any) -> None:
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
    with pytest.raises(UserError, match="cannot be read as a JSON key file"):
        Store("gs://b/set", StoreRecipe(credentials_file=str(key))).get("a")


def test_an_endpoint_without_tls_has_to_be_allowed(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    monkeypatch.delenv("GOOGLE_ALLOW_HTTP")
    with pytest.raises(UserError, match="is not encrypted; give one with https://, or allow it with AWS_ALLOW_HTTP"):
        Store("s3://b/set").get("a")
    assert Store("s3://b/set", StoreRecipe(allow_http=True)).get("a") is None


def test_no_credential_is_in_messages_representations_or_addresses(bucket: Bucket) -> None:
    store = Store("s3://b/set")
    assert store.get("a") is None
    assert SECRET not in repr(store._find_access()) + repr(vars(store))
    assert store.hide(f"x {SECRET} y") == "x *** y"
    bucket.faults[:] = [Fault("status", times=None, code=403)]
    with pytest.raises(UserError) as told:
        store.create("a", b"1")
    assert SECRET not in str(told.value)
    assert told.value.__cause__ is None
    for address in ("https://me:hunter22@host/set", "s3://key:hunter22@b/set", "https://host/set?sig=hunter22"):
        with pytest.raises(UserError, match="give the plain URL") as told:
            Store(address)
        assert "hunter22" not in str(told.value)


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_patience_by_the_environment_is_checked(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_STORE_PATIENCE", text)
    with pytest.raises(UserError, match="FACTORY_STORE_PATIENCE"):
        Store("s3://b/set")


@pytest.mark.parametrize("name", ["connection", "timed out", "credential", "status"])
def test_a_name_that_sounds_like_trouble_is_not_waited_for(bucket: Bucket, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a file, not a folder")
    with pytest.raises(UserError, match="cannot use"):
        Store(str(tmp_path / name)).create("connection/a", b"1")
    bucket.faults[:] = [Fault("status", times=None, code=400)]
    with pytest.raises(UserError, match="400"):
        Store(f"s3://b/{name}").get("a")
    assert sum(bucket.requests.values()) == 1
