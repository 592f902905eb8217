"""Failing buckets: temporary failures are retried, others raise clear errors."""

import pickle
import threading
import time
from pathlib import Path

import pytest

from factory.config.plan import PlannedShard
from factory.config.sections import StoreRecipe
from factory.dataset.receipts import Tally, commit, read_receipt, receipt_tags
from factory.dataset.storage import ConflictError, Store, StoreFullError
from factory.errors import StoreUnavailableError, UserError
from tests.support.bucket import Bucket, Fault

pytestmark = pytest.mark.usefixtures("home")


def test_all_operations_on_s3_and_google_cloud(bucket: Bucket, address: str) -> None:
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
    assert not store.compare_and_swap("q", b"5", b"3"), "it was deleted"
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
        Fault("status", times=1, code=400, reason="RequestTimeout"),
        Fault("status", times=1, code=400, reason="BadDigest"),
        Fault("reset", times=1),
        Fault("lost", times=1),
        Fault("cut", times=1),
    ],
    ids=lambda fault: f"{fault.kind}{fault.code}{fault.reason}",
)
def test_temporary_failure_is_retried(bucket: Bucket, address: str, fault: Fault) -> None:
    store = Store(address)
    store.put("receipts/0.json", b"0" * 1000)
    for operation in (
        lambda: store.get("receipts/0.json") == b"0" * 1000,
        lambda: store.create_same("train/0.tar", b"1" * 1000) is None,
        lambda: store.compare_and_swap("lease.json", b"mine", None),
        lambda: store.compare_and_swap("lease.json", b"mine, later", b"mine"),
        lambda: store.list("receipts") == {"receipts/0.json": 1000},
        lambda: store.delete("receipts/0.json") is None,
    ):
        bucket.faults[:] = [Fault(**{**vars(fault), "since": time.monotonic()})]
        assert operation()
        assert bucket.faults[0].times == 0, "the fault was triggered"


def test_replacement_whose_response_was_lost_has_been_made(bucket: Bucket, address: str) -> None:
    """The repeated request fails because the file has changed. A run would say that another driver was faster."""
    store = Store(address)
    store.put("recipe.yaml", b"n: 4")
    bucket.faults[:] = [Fault("lost", "PUT")]
    assert store.compare_and_swap("recipe.yaml", b"n: 8", b"n: 4")
    assert store.compare_and_swap("recipe.yaml", b"n: 8", b"n: 4"), "also if the caller repeats it after an outage"
    assert store.get("recipe.yaml") == b"n: 8"


def test_interrupted_listing_resumes(bucket: Bucket) -> None:
    for number in range(2500):
        bucket.put(f"b/set/receipts/{number:06d}.json", b"{}")
    bucket.faults[:] = [Fault("cut", "continuation-token", times=2)]
    assert len(Store("s3://b/set").list("receipts")) == 2500
    assert bucket.requests == {"GET": 3, "GET cut": 2}, "no received page is requested again"


def test_a_long_listing_is_read_in_parts_at_once(bucket: Bucket, address: str, tmp_path: Path) -> None:
    """The same names come as in one piece, and parts that are cut continue; a folder and few shards have one part."""
    numbers = [*range(0, 40_000, 16), 9_999, 10_000, 20_000, 29_999]
    for number in numbers:
        bucket.put(f"b/set/receipts/{number:06d}.json", b"{}")
    bucket.faults[:] = [Fault("cut", "start-after", times=3)]
    whole = Store(address).entries("receipts")
    assert bucket.requests == {"GET": 3}, "pages"
    found = receipt_tags(Store(address), 40_000)
    assert found == {number: whole[f"receipts/{number:06d}.json"].tag for number in numbers}
    assert bucket.requests["GET cut"] == 3
    Store(str(tmp_path)).put("receipts/020000.json", b"{}")
    assert set(receipt_tags(Store(str(tmp_path)), 40_000)) == {20_000}


def test_outage_is_retried_and_reported(
    bucket: Bucket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.dataset.storage_retry._WARN_AFTER", 0.3)
    store = Store("s3://b/set")
    assert store.create("a", b"1")
    bucket.faults[:] = [Fault("outage", times=None, seconds=60)]
    messages = list[str]()

    def end_the_outage() -> None:
        deadline = time.monotonic() + 30
        while store.trouble is None and time.monotonic() < deadline:
            time.sleep(0.01)
        messages.append(store.trouble or "")
        bucket.faults.clear()

    watcher = threading.Thread(target=end_the_outage)
    watcher.start()
    assert store.get("a") == b"1"
    watcher.join()
    assert "does not respond" in messages[0]
    assert "committed shards are kept" in caplog.text
    assert store.trouble is None


def test_store_that_never_responded_fails_early(bucket: Bucket) -> None:
    bucket.faults[:] = [Fault("status", times=None)]
    with pytest.raises(
        StoreUnavailableError, match=r"did not respond for 1 s: .*503.*; check the address, the endpoint"
    ):
        Store("s3://b/set", StoreRecipe(patience=1)).get("a")


def test_store_that_responded_before_is_retried_for_its_patience(bucket: Bucket) -> None:
    store = Store("s3://b/set", StoreRecipe(patience=1))
    store.put("a", b"1")
    bucket.faults[:] = [Fault("reset", times=None)]
    with pytest.raises(StoreUnavailableError, match="rerun the same command when it responds again"):
        pickle.loads(pickle.dumps(store)).get("a")


@pytest.mark.parametrize("code", [501, 505])
def test_request_that_the_service_does_not_implement_fails_immediately(bucket: Bucket, code: int) -> None:
    """Some services answer a conditional write with 501 Not Implemented: waiting does not help."""
    store = Store("s3://b/set", StoreRecipe(patience=0.5))
    store.put("a", b"1")
    bucket.faults[:] = [Fault("status", times=None, code=code)]
    with pytest.raises(UserError, match=f"cannot use s3://b/set/b: .*{code}") as raised:
        store.create("b", b"1")
    assert not isinstance(raised.value, StoreUnavailableError)
    assert ("supports conditional writes (If-None-Match" in str(raised.value)) == (code == 501)
    assert bucket.requests == {"PUT": 1, "PUT status": 1}


def test_conflict_between_requests_is_repeated(bucket: Bucket, address: str) -> None:
    """A service that answers 409 did not store the file; a shard without its receipt would count as finished."""
    store, planned = Store(address), PlannedShard(0, (), "0" * 64, 3)
    for name in ("train.*tar", "manifest.*parquet", "receipts.*json"):
        bucket.faults.append(Fault("status", f"PUT .*{name}", code=409))
    receipt = commit(store, planned, [], Tally(0, {}, ()), "0" * 64, {"seconds": {}, "versions": {}, "worker": {}})
    assert [fault.times for fault in bucket.faults] == [0, 0, 0]
    assert read_receipt(store, 0) == receipt


@pytest.mark.parametrize("reason", ["ConditionalRequestConflict", "OperationAborted"])
def test_conflict_with_an_own_request_is_not_that_with_another_writer(
    bucket: Bucket, address: str, reason: str
) -> None:
    """S3 answers so while it still executes the first attempt. A night ended: "another driver changed night.json"."""
    store = Store(address)
    for seen, data in ((None, b"1"), (b"1", b"2")):
        bucket.faults.append(Fault("status", "PUT", code=409, reason=reason))
        assert store.compare_and_swap("a", data, seen)
    bucket.faults.append(Fault("status", "PUT", code=409, reason=reason))
    assert store.create("b", b"1")
    assert not store.create("b", b"2")


@pytest.mark.parametrize(
    ("code", "reason"), [(507, "XMinioStorageFull"), (403, "QuotaExceeded"), (400, "XMinioAdminBucketQuotaExceeded")]
)
def test_full_bucket_ends_the_run_like_a_full_disk(bucket: Bucket, code: int, reason: str) -> None:
    bucket.faults.append(Fault("status", "PUT", times=None, code=code, reason=reason))
    with pytest.raises(StoreFullError, match=r"^no space left for s3://b/set/train/0.tar; committed shards are kept"):
        Store("s3://b/set").create("train/0.tar", b"1")
    assert bucket.requests["PUT status"] == 1, "waiting does not help"


def test_missing_bucket_raises_a_clear_error(bucket: Bucket, address: str) -> None:
    """For all operations: a listing raises a different error, and for reads 404 is a regular response."""
    bucket.faults[:] = [Fault("status", times=None, code=404)]
    store = Store(address)
    for operation in (
        lambda: store.compare_and_swap("a", b"1", None),
        lambda: store.create("a", b"1"),
        lambda: store.get("a"),
        lambda: store.list("receipts"),
    ):
        with pytest.raises(UserError, match=f"{address}/.*: the bucket does not exist; create it"):
            operation()


def test_error_contains_the_message_of_the_service(bucket: Bucket, address: str) -> None:
    """The XML starts on a new line, so the message is not in the first line of the client's error."""
    bucket.faults[:] = [Fault("status", times=None, code=403)]
    with pytest.raises(UserError, match=r"403 Forbidden: AccessDenied\. Give a folder") as raised:
        Store(address).list("receipts")
    assert "<" not in str(raised.value)


def test_upload_timeout_depends_on_size(bucket: Bucket) -> None:
    """2 MB at 1 MB/s with a timeout of half a second for small requests: a fixed timeout would always fail."""
    bucket.faults[:] = [Fault("throttle", "PUT", times=None, rate=1e6)]
    store = Store("s3://b/set", StoreRecipe(timeout=0.5, slowest=500_000))
    assert store.create("train/0.tar", b"1" * 2_000_000)
    assert bucket.requests == {"PUT": 1, "PUT throttle": 1}


def test_large_file_is_a_single_request(bucket: Bucket, address: str) -> None:
    data = b"1" * 12_000_000
    Store(address).put("dataset.json", data)
    assert bucket.requests == {"PUT": 1}
    assert bucket.objects["b/set/dataset.json"][0] == data


def test_stalled_request_is_retried(bucket: Bucket) -> None:
    bucket.faults[:] = [Fault("stall", seconds=30)]
    start = time.monotonic()
    assert Store("s3://b/set", StoreRecipe(timeout=0.5)).create("a", b"1")
    assert time.monotonic() - start < 25


@pytest.mark.parametrize(
    ("variable", "text", "allowed"),
    [
        ("PATIENCE", "soon", "seconds of at least 0, got 'soon'"),
        ("PATIENCE", "-1", "seconds of at least 0, got '-1'"),
        ("PATIENCE", "nan", "seconds of at least 0, got 'nan'"),
        ("TIMEOUT", "4000", "seconds above 0 and up to 3600, got '4000'"),
        ("SLOWEST", "0", "bytes per second above 0, got '0'"),
    ],
)
def test_settings_in_the_environment_are_validated(
    variable: str, text: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACTORY_STORE_PATIENCE", "5")
    monkeypatch.setenv(f"FACTORY_STORE_{variable}", text)
    with pytest.raises(UserError, match=rf"FACTORY_STORE_{variable} must be a number of {allowed}\.$"):
        Store("s3://b/set")


@pytest.mark.parametrize("name", ["connection", "timed out", "credential", "status"])
def test_name_that_looks_like_an_error_is_not_retried(bucket: Bucket, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a file, not a folder")
    with pytest.raises(UserError, match="cannot use"):
        Store(str(tmp_path / name)).create("connection/a", b"1")
    bucket.faults[:] = [Fault("status", times=None, code=400)]
    with pytest.raises(UserError, match="400"):
        Store(f"s3://b/{name}").get("a")
    assert sum(bucket.requests.values()) == 1
