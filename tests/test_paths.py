"""Paths on this machine, and URLs where none can stand."""

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from factory.cli.main import app
from factory.errors import UserError
from factory.files.paths import local_path, split_named_path
from factory.workflow.run import load_workflow

URL = "s3://bucket/prefix"


def _commands() -> dict[str, Any]:
    return typer.main.get_command(app).commands  # type: ignore[attr-defined]


def _options() -> list[tuple[list[str], str]]:
    """(command, option) of every option that names a path."""
    commands = [([name], one) for name, one in _commands().items() if name != "stickers"]
    commands += [(["stickers", name], one) for name, one in _commands()["stickers"].commands.items()]
    return [
        (name, flag)
        for name, command in commands
        for parameter in command.params
        if parameter.metavar == "PATH"
        for flag in parameter.opts
        if flag.startswith("--")
    ]


def _refused(command: list[str]) -> tuple[int, str]:
    """(exit code, what is said), whether the command line says it or the entry point."""
    result = CliRunner().invoke(app, command)
    if isinstance(result.exception, UserError):
        return 2, str(result.exception)
    return result.exit_code, " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(("command", "option"), _options())
def test_a_url_is_refused_where_only_a_path_works(
    command: list[str], option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, told = _refused([*command, option, URL])
    assert code == 2
    assert f"{option} must be a local path, got the URL {URL}; give" in told
    assert not list(tmp_path.iterdir())


def test_every_option_that_was_found_broken_is_among_them() -> None:
    options = [(command[-1], option) for command, option in _options()]
    assert {(name, "--out") for name in ("train-grounder", "train-segmenter", "run", "sheet")} <= {*options}
    assert len(options) > 20


@pytest.mark.parametrize(
    "command",
    [
        ["export", "set", "--format", "coco", "--to", URL],
        ["run", URL],
        ["evaluate-segmenter", URL, "--real", "here"],
        ["evaluate-grounder", URL],
        ["compare-segmenters", f"one={URL}", "--real", "R=here"],
        ["compare-segmenters", "one=here", "--real", f"R={URL}"],
    ],
)
def test_a_url_is_refused_in_arguments_too(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, told = _refused(command)
    assert code == 2
    assert f"must be a local path, got the URL {URL}" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            f"out: {URL}\nsteps: [status: {{with: a}}]\n",
            r"`out` of .*job.yaml must be a local path, got the URL",
        ),
        (f"out: here\nvalues: {{to: {URL}}}\nsteps: [train-grounder: {{with: o, out: '{{to}}'}}]\n", "--out of train-"),
    ],
)
def test_a_url_in_a_job_is_refused_before_anything_runs(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(UserError, match=told):
        load_workflow(tmp_path / "job.yaml", None, _commands(), {})


def test_a_datasets_url_in_a_job_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(f"out: here\nsteps: [generate: {{classes: voc, n: 4, shards: {URL}/a}}]\n")
    (step,) = load_workflow(tmp_path / "job.yaml", None, _commands(), {}).steps
    assert step.arguments[-1] == f"{URL}/a"


def test_what_is_a_path_and_what_a_url() -> None:
    assert local_path("runs/a:b/c", "--out") == Path("runs/a:b/c")
    assert local_path("file:///tmp/x", "--out") == Path("/tmp/x")
    assert local_path("C:/data", "--out") == Path("C:/data")
    for url in ("gs://b/x", "https://host/x", "s3:/b/x", "hdfs://b"):
        with pytest.raises(UserError, match="must be a local path"):
            local_path(url, "--out")


def test_a_name_stands_before_the_first_equals_sign() -> None:
    assert split_named_path("one=runs/a") == ("one", "runs/a")
    assert split_named_path("one=s3://b/date=2024/x") == ("one", "s3://b/date=2024/x")
    assert split_named_path("s3://b/date=2024/x") == (None, "s3://b/date=2024/x")
    assert split_named_path("runs/lr=1/model") == (None, "runs/lr=1/model")
