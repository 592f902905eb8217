"""jobs/slurm/nightly.sbatch on a real Slurm with two hosts: it is stopped, requeues itself and resumes."""

import json
import os
import re
import shutil
import subprocess
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
SCRIPT = ROOT / "jobs/slurm/nightly.sbatch"
SAMPLES, SHARD_SIZE = 48, 4


class Slurm:
    """slurmctld on `head`, a slurmd on each of `w1` and `w2`; `munged` is shared, because the file system is."""

    def __init__(self, hosts: Hosts) -> None:
        for program in ("slurmctld", "slurmd", "sbatch", "munged", "mungekey"):
            assert shutil.which(program), f"{program} is not installed; `make test-cluster` installs it"
        self._hosts, self._folder = hosts, hosts.folder / "slurm"
        self._folder.mkdir()
        self.conf = self._folder / "slurm.conf"
        self.conf.write_text(self._configuration())

    def up(self) -> None:
        key, socket = self._folder / "munge.key", self._folder / "munge.socket"
        subprocess.run(["mungekey", "--create", f"--keyfile={key}"], check=True)
        files = [f"--{name}-file={self._folder}/munge.{name}" for name in ("pid", "log", "seed")]
        self._hosts.start(
            "head", ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket}", *files]
        )
        wait_until(socket.exists, 20, "munged does not start")
        self._hosts.start("head", ["slurmctld", "-D", "-f", self.conf], log="slurmctld.log")
        for worker in ("w1", "w2"):
            (self._folder / worker).mkdir()
            self._hosts.start(worker, ["slurmd", "-D", "-N", worker, "-f", self.conf], log=f"slurmd-{worker}.log")
        wait_until(lambda: self.call("sinfo", "-h", "-o", "%t").split() == ["idle"], 60, "Slurm does not start", 1)

    def call(self, *command: object, env: dict[str, str] | None = None) -> str:
        """Run a client on the head; returns its output, empty if it fails."""
        code, output = self._hosts.run("head", command, {"SLURM_CONF": str(self.conf), **(env or {})})
        return output if code == 0 else ""

    def state(self, job: str) -> dict[str, str]:
        """The fields of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.call("scontrol", "show", "job", job)))

    def _configuration(self) -> str:
        folder, addresses = self._folder, self._hosts.addresses
        lines = [
            "ClusterName=test",
            f"SlurmctldHost=head({addresses['head']})",
            "SlurmUser=root",
            "SlurmdUser=root",
            # A requeued job may start again when the credentials of its first start have expired.
            f"AuthInfo=socket={folder}/munge.socket,cred_expire=5",
            f"StateSaveLocation={folder}/state",
            f"SlurmdSpoolDir={folder}/%n",
            f"SlurmctldPidFile={folder}/slurmctld.pid",
            f"SlurmdPidFile={folder}/slurmd-%n.pid",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "SlurmdParameters=config_overrides",
            "ReturnToService=2",
            "MinJobAge=3600",
            "SchedulerParameters=sched_interval=2,bf_interval=2",
            *(f"NodeName={name} NodeAddr={addresses[name]} CPUs=1 RealMemory=3000" for name in ("w1", "w2")),
            "PartitionName=night Nodes=w1,w2 Default=YES MaxTime=INFINITE State=UP",
        ]
        (folder / "state").mkdir()
        return "\n".join(lines) + "\n"


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    with Hosts(tmp_path, ["head", "w1", "w2"]) as hosts:
        slurm = Slurm(hosts)
        slurm.up()
        yield slurm


def test_night_over_two_nodes_is_stopped_requeued_and_resumed(slurm: Slurm, tmp_path: Path) -> None:
    recipe = {
        "classes": ["dog", "cat"],
        "n": SAMPLES,
        "shard_size": SHARD_SIZE,
        "engine": {"address": "auto", "grace": 30},
    }
    root, log = tmp_path / "nights", tmp_path / "night.log"
    config = tmp_path / "nightly.yaml"
    config.write_text(yaml.safe_dump({"root": str(root), "starts": "22:00", "recipe": recipe, "budget": {"hours": 1}}))
    environment = {
        "FACTORY_BIN": str(BIN),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PATH": os.environ["PATH"],
    }
    options = ["--nodes=2", "--cpus-per-task=1", f"--output={log}", "--parsable"]
    job = slurm.call("sbatch", *options, SCRIPT, config, env=environment).strip()
    assert job.isdecimal()

    def receipts() -> list[Path]:
        return sorted(root.glob("*/dataset/receipts/*.json"))

    wait_until(lambda: len(receipts()) >= 2, 300, f"no shard was committed: {log}", 1)
    # What `--signal=B:TERM@180` does three minutes before the time limit.
    slurm.call("scancel", "--batch", "--signal=TERM", job)
    wait_until(lambda: slurm.state(job).get("Restarts") == "1", 120, f"the job was not requeued: {log}", 1)
    before = {path.name: path.stat().st_mtime_ns for path in receipts()}
    assert 2 <= len(before) < SAMPLES // SHARD_SIZE
    wait_until(lambda: slurm.state(job)["JobState"] in ("COMPLETED", "FAILED"), 400, f"the job does not end: {log}", 2)
    state, text = slurm.state(job), log.read_text()
    assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0"), text[-4000:]
    assert "factory nightly ended with 143" in text
    assert "night on 2 nodes (w1 w2), restart 1" in text
    (night,) = root.glob("*/night.json")
    record = json.loads(night.read_text())
    assert (record["state"], record["samples"], record["runs"]) == ("complete", SAMPLES, 2)
    after = {path.name: path.stat().st_mtime_ns for path in receipts()}
    assert {name: after[name] for name in before} == before, "committed shards were not generated again"
    hosts = {json.loads(path.read_text())["worker"]["host"] for path in receipts()}
    assert hosts == {"w1", "w2"}
