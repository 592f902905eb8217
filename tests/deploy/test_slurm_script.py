"""jobs/slurm/nightly.sbatch with small scripts in place of Slurm, Ray and factory."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = {
    "srun": 'echo "$*" >> steps; [ -z "$RAY_FAILS" ] || exit 1; exec tail -f /dev/null',
    "scontrol": 'case $1 in show) printf "n1\\nn2\\nn3\\n" ;; requeue) touch requeued ;; esac',
    "squeue": 'echo "${STATE:-RUNNING}"',
    "ray": '[ -z "$STOPPED" ] || kill -TERM "$PPID"; [ -z "$RAY_FAILS" ]',
    "factory": 'exit "$CODE"',
    "hostname": "echo 10.0.0.1",
    "sleep": "exit 0",
}


def run(folder: Path, **variables: str) -> tuple[int, bool, list[str]]:
    """(exit code, whether the job was requeued, the arguments of each srun)."""
    (folder / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]"}
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, ROOT / "jobs/slurm/nightly.sbatch", "nightly.yaml"],
        cwd=folder,
        env={**environment, "SLURM_CPUS_PER_TASK": "8", "RAY_FAILS": "", "STOPPED": "", "CODE": "0", **variables},
        stdout=subprocess.DEVNULL,
        timeout=60,
    )
    steps = folder / "steps"
    return done.returncode, (folder / "requeued").exists(), steps.read_text().splitlines() if steps.exists() else []


def test_every_step_gets_the_cores_that_ray_may_use(tmp_path: Path) -> None:
    _, _, steps = run(tmp_path)
    assert len(steps) == 2
    for step in steps:
        options, _, command = step.partition("ray start")
        assert "--cpus-per-task=8 " in options, "srun does not inherit it from sbatch"
        assert "--num-cpus=8 " in command


@pytest.mark.parametrize(
    ("code", "expected", "requeued"),
    [(0, 0, False), (1, 1, False), (2, 2, False), (3, 3, False), (4, 0, False), (5, 5, False), (6, 0, False)]
    + [(code, code, True) for code in (75, 130, 137, 143)],
)
def test_only_what_a_retry_helps_is_requeued(code: int, expected: int, requeued: bool, tmp_path: Path) -> None:
    assert run(tmp_path, CODE=str(code))[:2] == (expected, requeued)


@pytest.mark.parametrize("variables", [{"STATE": "CANCELLED"}, {"SLURM_RESTART_COUNT": "20"}])
def test_cancelled_jobs_and_those_with_many_restarts_stay_away(variables: dict[str, str], tmp_path: Path) -> None:
    assert run(tmp_path, CODE="75", **variables)[:2] == (75, False)


def test_ray_that_does_not_start_is_a_temporary_failure(tmp_path: Path) -> None:
    assert run(tmp_path, RAY_FAILS="1")[:2] == (75, True)


def test_job_that_is_stopped_before_the_driver_runs_is_requeued(tmp_path: Path) -> None:
    """`ray status` waits for Ray when Slurm signals the script, because the job is preempted."""
    assert run(tmp_path, STOPPED="1")[:2] == (143, True)


def test_missing_program_is_not_tried_again(tmp_path: Path) -> None:
    assert run(tmp_path, FACTORY_BIN=str(tmp_path / "nothing"))[:2] == (2, False)
