"""Jobs: loading, validation, signals, and resuming after a failure."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from factory.errors import TransientError, UserError
from factory.files.lock import sole_writer
from factory.workflow.run import load_workflow, run_workflow
from tests.support.in_process import commands

JOBS = Path(__file__).parents[1] / "jobs"


def write(path: Path, **data: Any) -> Path:
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


@pytest.mark.parametrize("name", sorted(path.name for path in JOBS.glob("*.yaml")))
def test_shipped_job_loads(name: str, tmp_path: Path) -> None:
    job = load_workflow(JOBS / name, tmp_path, commands(), {})
    outputs = {folder for step in job.steps for folder in step.writes}
    trainings = [step for step in job.steps if step.name == "train-grounder"]
    assert trainings
    assert all(set(step.arguments) & outputs for step in trainings), "grounders are trained on datasets of the job"


def test_command_line_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    arguments = {"n": 1, "classes": '"traffic light",dog', "shards": "it's; $HOME *"}
    file = write(tmp_path / "job.yaml", out="x", steps=[{"generate": arguments}])
    (step,) = load_workflow(file, None, commands(), {}).steps
    assert shlex.split(step.command_line()) == ["factory", "generate", *step.arguments]


@pytest.mark.parametrize("name", ["voc.yaml", "coco.yaml", "protocol-2.yaml"])
def test_values_are_filled_into_steps(name: str, tmp_path: Path) -> None:
    job = load_workflow(JOBS / name, tmp_path, commands(), {"split": "2"})
    oracle = next(step for step in job.steps if step.name == "bootstrap-oracle")
    assert oracle.arguments[2:4] == ("--split", "2")


def test_one_process_at_a_time_runs_a_job(tmp_path: Path) -> None:
    """A second one ran the same steps, and forgot which of them the first had completed."""
    file = write(tmp_path / "job.yaml", out=str(tmp_path), steps=[{"models": {}}])
    job = load_workflow(file, None, commands(), {})
    busy = pytest.raises(TransientError, match="another command is writing to")
    with sole_writer(tmp_path / "job.lock", tmp_path), busy:
        run_workflow(job, print)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"steps": []}, "is not a job: it requires `out:` and `steps:`"),
        ({"out": "x", "steps": [{"bake": {}}]}, "there is no command 'bake'"),
        ({"out": "x", "steps": [{"verify": {"colour": 1}}]}, "verify has no option 'colour'"),
        ({"out": "x", "steps": [{"verify": {"with": "{nothing}"}}]}, "uses 'nothing', which is neither"),
    ],
)
def test_invalid_job_is_rejected_on_load(data: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_workflow(write(tmp_path / "job.yaml", **data), None, commands(), {})
    steps = [{"verify": {"with": "a"}}]
    with pytest.raises(UserError, match="has no value 'm'"):
        load_workflow(write(tmp_path / "job.yaml", out="x", values={"n": 1}, steps=steps), None, commands(), {"m": "2"})
    with pytest.raises(UserError, match="To change the folder of the job, give --out"):
        load_workflow(write(tmp_path / "job.yaml", out="x", steps=steps), None, commands(), {"out": "y"})


def test_list_repeats_an_option(tmp_path: Path) -> None:
    step = {"compare-segmenters": {"with": ["a={out}/a"], "real": ["R={out}/r", "O={out}/o"]}}
    job = load_workflow(write(tmp_path / "job.yaml", out="x", steps=[step]), None, commands(), {})
    assert job.steps[0].arguments == ("a=x/a", "--real", "R=x/r", "--real", "O=x/o")


def test_job_resumes_at_the_failed_step(tmp_path: Path) -> None:
    render = {"classes": "voc", "n": "{n}", "out": "{out}/real", "size": 64}
    steps = [{"stickers": {"with": ["render", *(part for k, v in render.items() for part in (f"--{k}", v))]}}]
    steps.append({"status": {"with": "{out}/real"}})
    file = write(tmp_path / "job.yaml", out=str(tmp_path / "out"), values={"n": 3}, steps=steps)
    with pytest.raises(UserError, match=r"step 2 \(status\) ended with exit code 2"):
        run_workflow(load_workflow(file, None, commands(), {}), lambda text: None)
    assert len(list((tmp_path / "out/real/JPEGImages").iterdir())) == 3
    lines: list[str] = []
    with pytest.raises(UserError, match="step 2"):
        run_workflow(load_workflow(file, None, commands(), {}), lines.append)
    assert lines[0].startswith("[1/2] already completed: factory stickers render")


@pytest.mark.parametrize(("code", "continues"), [(4, True), (3, False), (1, False), (75, False)])
def test_only_exit_code_4_lets_a_job_continue(
    code: int, continues: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.workflow.run._PROGRAM", (sys.executable, "-c", f"raise SystemExit({code})"))
    file = write(tmp_path / "job.yaml", out=str(tmp_path / "out"), steps=[{"status": {"with": "a"}}])
    job, lines = load_workflow(file, None, commands(), {}), list[str]()
    if continues:
        run_workflow(job, lines.append)
        assert "complete, although some samples were rejected in every attempt" in lines[1]
    else:
        with pytest.raises(UserError, match=rf"step 1 \(status\) ended with exit code {code};") as failed:
            run_workflow(job, lines.append)
        assert failed.value.exit_code == code, "an orchestrator sees why the step failed"


def test_step_killed_by_a_signal_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.workflow.run._PROGRAM", (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"))
    file = write(tmp_path / "job.yaml", out=str(tmp_path / "out"), steps=[{"status": {"with": "a"}}])
    with pytest.raises(UserError, match=r"was killed by signal 9 \(out of memory\?\)") as failed:
        run_workflow(load_workflow(file, None, commands(), {}), lambda text: None)
    assert failed.value.exit_code == 137, "the code that a shell reports; docs/exit-codes.md says to rerun"


def test_step_that_is_changed_and_changed_back_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder holds the results of the other options."""
    monkeypatch.setattr("factory.workflow.run._PROGRAM", (sys.executable, "-c", "pass"))
    steps = [
        {"report": {"with": "{out}/set", "compare": "{other}", "out": "{out}/report"}},
        {"report": {"with": "{out}/set", "out": "{out}/other"}},
    ]
    file = write(tmp_path / "job.yaml", out=str(tmp_path / "out"), values={"other": "a"}, steps=steps)
    (tmp_path / "out/set").mkdir(parents=True)
    runs = []
    for other in ("a", "b", "a", "a"):
        lines = list[str]()
        run_workflow(load_workflow(file, None, commands(), {"other": other}), lines.append)
        runs.append(["already completed" not in line for line in lines])
    assert runs == [[True, True], [True, False], [True, False], [False, False]]


def test_step_runs_again_if_its_recipe_or_class_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was skipped, so the dataset remained that of the earlier recipe."""
    monkeypatch.setattr("factory.workflow.run._PROGRAM", (sys.executable, "-c", "pass"))
    monkeypatch.chdir(tmp_path)
    recipe, classes = Path("recipe.yaml"), tmp_path / "classes.txt"
    recipe.write_text("seed: 1\n")
    classes.write_text("dog\n")
    steps = [
        {"generate": {"recipe": str(recipe), "n": 4, "shards": "{out}/a"}},
        {"generate": {"classes": str(classes), "n": 4, "shards": "{out}/b"}},
        {"report": {"with": "{out}/a", "out": "{out}/report"}},
    ]
    job = load_workflow(write(tmp_path / "job.yaml", out=str(tmp_path), steps=steps), None, commands(), {})

    def runs() -> list[bool]:
        lines = list[str]()
        run_workflow(job, lines.append)
        return ["already completed" not in line for line in lines]

    assert [runs(), runs()] == [[True] * 3, [False] * 3]
    recipe.write_text("seed: 2\n")
    assert [runs(), runs()] == [[True, False, True], [False] * 3]
    classes.write_text("cat\n")
    assert [runs(), runs()] == [[False, True, False], [False] * 3]


def test_missing_input_of_a_step_is_reported_before_the_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps before it ran first, for a day in `jobs/voc.yaml`."""
    monkeypatch.setattr("factory.workflow.run._PROGRAM", (sys.executable, "-c", "pass"))
    oracle, labelled, lines = tmp_path / "oracle", tmp_path / "voc", list[str]()
    steps = [
        {"generate": {"n": 4, "shards": "{out}/set"}},
        {"export": {"with": "{out}/set", "format": "voc"}},
        {"train-grounder": {"with": [str(oracle), "{out}/set", "s3://bucket/oracle"], "out": "{out}/grounder"}},
        {"evaluate-grounder": {"with": ["a={out}/grounder/model", "stickers"], "real": ["a=s3://bucket/set"]}},
        {"train-segmenter": {"with": "{out}/set", "real": f"file://{labelled}", "out": "{out}/segmenter"}},
        {"compare-segmenters": {"with": "a={out}/segmenter/model", "real": ["own={out}/set-voc", f"other={labelled}"]}},
    ]
    file = write(tmp_path / "job.yaml", out=str(tmp_path / "out"), steps=steps)
    job = load_workflow(file, None, commands(), {})
    for number, missing in ((3, oracle), (5, labelled)):
        with pytest.raises(UserError, match=rf"^step {number} \(.*\) reads {missing}, which does not exist"):
            run_workflow(job, lines.append)
        missing.mkdir()
    assert not lines
    run_workflow(job, lines.append)
    assert len(lines) == len(steps)
    oracle.rmdir()
    run_workflow(job, lines.append)
    assert all("already completed" in line for line in lines[len(steps) :])


def test_broken_list_of_completed_steps_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("[")
    file = write(tmp_path / "job.yaml", out=str(tmp_path), steps=[{"status": {"with": "a"}}])
    with pytest.raises(UserError, match=r"completed steps .*job\.json cannot be read"):
        run_workflow(load_workflow(file, None, commands(), {}), lambda text: None)
    for content in ('{"digest": 1}', '["digest"]'):
        (tmp_path / "job.json").write_text(content)
        with pytest.raises(UserError, match=r"completed steps .*job\.json is invalid; delete it to start from"):
            run_workflow(load_workflow(file, None, commands(), {}), lambda text: None)


def test_job_whose_folder_cannot_be_written_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    file = write(tmp_path / "job.yaml", out="x", steps=[{"status": {"with": "a"}}])
    for out in (tmp_path / "file", tmp_path / "file/out"):
        with pytest.raises(UserError, match=r"the folder of the job .* cannot be written: .*file is not a folder"):
            run_workflow(load_workflow(file, out, commands(), {}), lambda text: None)


def test_step_does_not_import_modules_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('imported')")
    render = {"with": ["render", "--classes", "dog", "--n", "1", "--out", "{out}/scenes"]}
    write(tmp_path / "job.yaml", out="out", steps=[{"stickers": render}])
    command = [sys.executable, "-P", "-m", "factory", "run", "job.yaml"]  # -P: like the command `factory`
    environment = os.environ | {"PYTHONPATH": str(JOBS.parent)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out/scenes").is_dir()


@pytest.mark.parametrize(
    ("number", "code", "both"), [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, False), (signal.SIGTERM, 143, True)]
)
def test_interrupted_job_lets_its_step_write_a_checkpoint(
    number: signal.Signals, code: int, both: bool, tmp_path: Path
) -> None:
    """Slurm and systemd signal the job and its step, which also receives the signal that the job forwards."""
    out = tmp_path / "grounder"
    step = f"import sys, time; from pathlib import Path; sys.argv = ['x']\n{STEP.format(out=out)}"
    file = write(tmp_path / "job.yaml", out=str(tmp_path / "out"), steps=[{"status": {"with": "a"}}])
    program = (
        f"import sys, factory.workflow.run; factory.workflow.run._PROGRAM = (sys.executable, '-c', {step!r}); "
        f"sys.argv = ['factory', 'run', {str(file)!r}]; from factory.cli.main import run; run()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "grounder.started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        for step_process in psutil.Process(process.pid).children() if both else []:
            step_process.send_signal(number)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert out.read_text() == "checkpoint", "the step had time to finish and was not killed"
    assert "Interrupted. Committed work is kept" in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "out/job.json").exists()


def test_signal_to_a_step_that_completes_nevertheless_stops_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `generate` step whose last shard is finished ends with code 0; the next step was started."""
    step = "import os, signal; signal.signal(15, lambda *_: os._exit(0)); os.kill(os.getppid(), 15); signal.pause()"
    monkeypatch.setattr("factory.workflow.run._PROGRAM", (sys.executable, "-c", step))
    file = write(tmp_path / "job.yaml", out=str(tmp_path / "out"), steps=[{"status": {"with": at}} for at in "ab"])
    job, lines = load_workflow(file, None, commands(), {}), list[str]()
    with pytest.raises(KeyboardInterrupt):
        run_workflow(job, lines.append)
    assert lines == ["[1/2] factory status a"]
    monkeypatch.setattr("factory.workflow.run._PROGRAM", (sys.executable, "-c", "pass"))
    run_workflow(job, lines.append)
    assert lines[1:] == ["[1/2] already completed: factory status a", "[2/2] factory status b"]


STEP = (
    "from factory import signals; signals.listen()\n"
    "with signals.stop_requests() as stop:\n"
    "    Path('{out}.started').touch()\n"
    "    while not stop(): time.sleep(0.05)\n"
    "    time.sleep(1); Path('{out}').write_text('checkpoint')\n"
    "raise SystemExit(signals.exit_code())"
)
"""A step that needs a second to write its checkpoint, like a training."""


def test_step_reruns_if_its_input_changes(tmp_path: Path) -> None:
    steps = [
        {"generate": {"n": "{n}", "classes": "dog", "shards": "{out}/set"}},
        {"generate": {"n": 5, "classes": "dog", "shards": "{out}/setting"}},
        {"train-segmenter": {"with": "{out}/set", "out": "{out}/segmenter"}},
        {"compare-segmenters": {"with": "mine={out}/segmenter/model", "real": "x"}},
    ]
    file = write(tmp_path / "job.yaml", out="x", values={"n": 3}, steps=steps)
    before, after = (load_workflow(file, None, commands(), {"n": n}).steps for n in ("3", "4"))
    assert [old.digest == new.digest for old, new in zip(before, after, strict=True)] == [False, True, False, False]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("x/set/", "x/set"),
        ("x/set", "./x//set/"),
        ("./x/set", "a=x/set/model"),
        ("x/lr=3", "x/lr=3/model"),
        ("x/lr=3", "a=x/lr=3/model"),
        ("lr=3", "lr=3/model"),
    ],
)
def test_step_reruns_whatever_the_spelling_of_its_input(written: str, read: str, tmp_path: Path) -> None:
    steps = [
        {"generate": {"n": "{n}", "classes": "dog", "shards": written}},
        {"compare-segmenters": {"with": read, "real": "x"}},
    ]
    file = write(tmp_path / "job.yaml", out="x", values={"n": 3}, steps=steps)
    before, after = (load_workflow(file, None, commands(), {"n": n}).steps[1] for n in ("3", "4"))
    assert before.digest != after.digest
