"""`ray job submit` of a night to a Ray cluster of three hosts, with a bucket on a fourth; one host fails on the way."""

import json
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.hosts import Hosts
from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster
BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent.parent
SAMPLES, SHARD_SIZE = 48, 4


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with Hosts(tmp_path, ["head", "w1", "w2", "s3"]) as hosts:
        yield hosts


@pytest.fixture
def environment(hosts: Hosts) -> dict[str, str]:
    """What every host has: a token, and the way to the bucket."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{hosts.addresses['s3']}:9000",
        "AWS_ALLOW_HTTP": "true",
    }


def start_bucket(hosts: Hosts) -> None:
    server = shutil.which("moto_server")
    assert server is not None, "moto_server is not in PATH; `make test-cluster` installs it"
    address = hosts.addresses["s3"]
    hosts.start("s3", [server, "-H", address, "-p", "9000"])
    create = ["curl", "--silent", "--fail", "--request", "PUT", f"http://{address}:9000/bucket"]
    wait_until(lambda: hosts.run("s3", create)[0] == 0, 60, "the S3 server does not start")


def start_ray(hosts: Hosts, environment: dict[str, str]) -> None:
    head = hosts.addresses["head"]
    common = ["--num-gpus=0", "--object-store-memory=100000000", "--block"]
    options = ["--head", f"--node-ip-address={head}", "--port=6379", f"--dashboard-host={head}", "--num-cpus=0"]
    hosts.start("head", [BIN / "ray", "start", *options, *common], environment)
    # The dashboard accepts jobs and starts last. Its refusal of a request without the token is an answer, too.
    dashboard = ["curl", "--silent", "--output", "/dev/null", f"http://{head}:8265/api/version"]
    wait_until(lambda: hosts.run("head", dashboard)[0] == 0, 120, "Ray does not start on the head", 1)
    for worker in ("w1", "w2"):
        join = [f"--address={head}:6379", f"--node-ip-address={hosts.addresses[worker]}", "--num-cpus=1"]
        hosts.start(worker, [BIN / "ray", "start", *join, *common], environment)


def test_submitted_night_survives_the_loss_of_a_host(hosts: Hosts, environment: dict[str, str], tmp_path: Path) -> None:
    start_bucket(hosts)
    start_ray(hosts, environment)
    recipe = {"classes": ["dog", "cat"], "n": SAMPLES, "shard_size": SHARD_SIZE, "engine": {"address": "auto"}}
    config = {"root": "s3://bucket/nights", "timezone": "Europe/Berlin", "recipe": recipe, "budget": {"hours": 1}}
    (tmp_path / "nightly.yaml").write_text(yaml.safe_dump(config))
    night = [BIN / "factory", "nightly", tmp_path / "nightly.yaml", "--date", "2026-11-25", "--json"]
    submit = [BIN / "ray", "job", "submit", "--address", f"http://{hosts.addresses['head']}:8265", "--"]
    driver = hosts.start("head", [*submit, *night], environment, "driver.log")

    def names(prefix: str) -> list[str]:
        url = f"{environment['AWS_ENDPOINT_URL']}/bucket?list-type=2&prefix=nights/2026-11-25/dataset/{prefix}"
        listing = hosts.run("s3", ["curl", "--silent", url])[1]
        return [part.partition("<")[0] for part in listing.split("<Key>")[1:]]

    wait_until(lambda: len(names("receipts/")) >= 2 or driver.poll() is not None, 300, "no shard was committed", 2)
    hosts.unplug("w2")
    assert driver.wait(400) == 0, (tmp_path / "driver.log").read_text()[-4000:]
    output = (tmp_path / "driver.log").read_text()
    result = json.loads(next(line for line in output.splitlines() if line.startswith('{"')))
    assert (result["state"], result["samples"]) == ("complete", SAMPLES)
    assert result["lost_workers"] >= 1
    assert len(names("receipts/")) == SAMPLES // SHARD_SIZE
    assert names("quarantine/") == []
    signed = ["curl", "--silent", "--fail", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", "key:secret"]
    url = f"{environment['AWS_ENDPOINT_URL']}/bucket"
    receipts = [hosts.run("s3", [*signed, f"{url}/{name}"])[1] for name in names("receipts/")]
    hosts_used = {json.loads(receipt)["worker"]["host"] for receipt in receipts}
    assert hosts_used == {"w1", "w2"}
    again, text = hosts.run("head", [*submit, *night], environment)
    assert (again, '"unchanged": true' in text) == (0, True), text[-2000:]
