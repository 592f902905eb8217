"""Options for local paths reject URLs."""

import os
from pathlib import Path

import pytest

from factory.cli.options import assemble
from factory.dataset.default_target import default_target
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.files.hub import hub_file
from factory.files.paths import expanded, local_path, split_named_path
from factory.workflow.run import load_workflow
from tests.support.export_datasets import make_dataset
from tests.support.in_process import commands, invoke

URL = "s3://bucket/prefix"


def _options() -> list[tuple[list[str], str]]:
    """(command, option) of every option that takes a local path."""
    parsers = [([name], command) for name, command in commands().items() if name != "stickers"]
    parsers += [(["stickers", name], command) for name, command in commands()["stickers"].commands.items()]
    return [
        (name, flag)
        for name, command in parsers
        for parameter in command.params
        if parameter.metavar == "PATH"
        for flag in parameter.opts[:1]  # the message names an option by its first spelling
        if flag.startswith("--")
    ]


def _invoke(command: list[str]) -> tuple[int, str]:
    """(exit code, message), whether it comes from the command line parser or as a UserError."""
    result = invoke(*command)
    if isinstance(result.exception, UserError):
        return 2, str(result.exception)
    return result.exit_code, " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(("command", "option"), _options())
def test_path_option_rejects_a_url(
    command: list[str], option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, message = _invoke([*command, option, URL])
    assert code == 2
    assert f"{option} must be a local path, got the URL {URL}; give" in message
    assert not list(tmp_path.iterdir())


def test_options_that_once_accepted_urls_are_covered() -> None:
    options = [(command[-1], option) for command, option in _options()]
    assert {(name, "--out") for name in ("train-grounder", "train-segmenter", "run", "preview")} <= {*options}
    assert len(options) > 20


def test_an_empty_path_is_not_the_current_folder() -> None:
    """A script may give a variable that is not set."""
    incomplete = (
        ["train-grounder", "set", "--out"],
        ["export", "set", "--format", "coco", "--out"],
        ["plan", "--recipe"],
    )
    for command in incomplete:
        code, message = _invoke([*command, ""])
        assert code == 2
        assert f"{command[-1]} is empty; give a path (. for the current folder)" in message


@pytest.mark.parametrize(
    "command",
    [
        ["export", "set", "--format", "coco", "--out", URL],
        ["run", URL],
        ["evaluate-segmenter", URL, "--real", "here"],
        ["evaluate-grounder", URL],
        ["compare-segmenters", f"one={URL}", "--real", "R=here"],
        ["compare-segmenters", "one=here", "--real", f"R={URL}"],
    ],
)
def test_path_argument_rejects_a_url(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, message = _invoke(command)
    assert code == 2
    assert f"must be a local path, got the URL {URL}" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"out: {URL}\nsteps: [status: {{with: a}}]\n",
            r"`out` of .*job.yaml must be a local path, got the URL",
        ),
        (f"out: here\nvalues: {{to: {URL}}}\nsteps: [train-grounder: {{with: o, out: '{{to}}'}}]\n", "--out of train-"),
    ],
)
def test_url_in_a_job_is_rejected_on_load(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_workflow(tmp_path / "job.yaml", None, commands(), {})


def test_dataset_url_in_a_job_is_kept(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(f"out: here\nsteps: [generate: {{classes: voc, n: 4, shards: {URL}/a}}]\n")
    (step,) = load_workflow(tmp_path / "job.yaml", None, commands(), {}).steps
    assert step.arguments[-1] == f"{URL}/a"


def test_local_path_accepts_paths_and_rejects_urls() -> None:
    assert local_path("runs/a:b/c", "--out") == Path("runs/a:b/c")
    for url in ("file:///tmp/x", "file:/tmp/x", "FILE:///tmp/x"):
        assert local_path(url, "--out") == Store(url).folder == Path("/tmp/x")
    assert local_path("C:/data", "--out") == Path("C:/data")
    for url in ("gs://b/x", "https://host/x", "s3:/b/x", "hdfs://b"):
        with pytest.raises(UserError, match="must be a local path"):
            local_path(url, "--out")


@pytest.mark.parametrize("name", ["my pets", "h\u00fcnde", os.fsdecode(b"caf\xe9"), "50%", "a%20b", "#1?"])
def test_file_url_of_any_folder_is_that_folder(name: str) -> None:
    """`factory generate --shards file:///data/my%20pets` created the folder `my%20pets`."""
    folder = Path("/data", name)
    assert Store(folder.as_uri()).folder == local_path(folder.as_uri(), "--out") == folder
    assert default_target(folder.as_uri(), "coco") == Path("/data", f"{name}-coco")
    assert Store(str(folder)).folder == local_path(str(folder), "--out") == folder


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "--model", "~nobody-here/sd15", "--n", "1", "--shards", "x"),
        ("generate", "--lora", "~nobody-here/l.safetensors", "--n", "1", "--shards", "x"),
        ("generate", "--masks", "~nobody-here/model", "--n", "1", "--shards", "x"),
        ("generate", "--masks", "detector", "--detector", "~nobody-here/d", "--n", "1", "--shards", "x"),
        ("generate", "--masks", "detector", "--detector", "sam3:~nobody-here/d", "--n", "1", "--shards", "x"),
        ("plan", "--cooccurrence", "~nobody-here/c.csv", "--objects", "2:1", "--n", "1"),
        ("prompts", "--lm", "~nobody-here/lm", "--n", "1", "--out", "x"),
    ],
)
def test_home_of_an_unknown_user_is_no_path(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Path.expanduser` raises RuntimeError; a shell passes such a text on as it is."""
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert isinstance(result.exception, UserError | SystemExit), result.exception
    assert "nobody-here" in f"{result.exception}{result.output}"
    assert not list(tmp_path.iterdir())


def test_no_folder_is_created_for_an_unknown_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container without a home folder, `out: ~/runs` of a job created the folder `~` in the working directory."""
    make_dataset(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ("export", "set", "--format", "yolo", "--out", "~nobody-here/x"),
        ("report", "set", "--out", "~nobody-here/x"),
        ("preview", "set", "--out", "~nobody-here/x.png"),
        ("stickers", "render", "--n", "1", "--out", "file://~nobody-here/x"),
        ("generate", "--classes", "dog", "--n", "1", "--shards", "~nobody-here/x"),
    ):
        code, message = _invoke([*arguments])
        assert code == 2
        assert "there is no home folder for ~nobody-here/x" in message
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    (tmp_path / "set").rename("~nobody-here")
    assert Store("~nobody-here").folder == tmp_path / "~nobody-here"


def test_home_is_expanded_if_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/a") == Path("/home/me/a")
    assert expanded(Path("b/~c")) == Path("b/~c")


def test_home_is_expanded_where_no_shell_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`out: ~/runs` in a job, and `open_dataset("~/set")`, named a folder `~` in the working directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pets.txt").write_text("dog\ncat\n")
    (tmp_path / "unseen.txt").write_text("cat\n")
    step = "bootstrap-oracle: {classes: ~/pets.txt, split: ~/unseen.txt, n: 4, shards: '{out}/set'}"
    (tmp_path / "job.yaml").write_text(f"out: ~/runs\nsteps: [{step}]\n")
    job = load_workflow(tmp_path / "job.yaml", None, commands(), {})
    assert job.out == tmp_path / "runs"
    assert job.steps[0].writes == [str(tmp_path / "runs/set")]
    assert Store("~/set").folder == tmp_path / "set"
    assert default_target("~/set/", "coco") == tmp_path / "set-coco"
    assert local_path("~/table.md", "--table") == tmp_path / "table.md"
    recipe = assemble(None, None, {"classes": "~/pets.txt", "split": "~/unseen.txt", "n": 4, "masks": "detector"})
    assert recipe.oracle is not None
    assert recipe.oracle.seen == ("dog",)


def test_a_name_stands_before_the_first_equals_sign() -> None:
    assert split_named_path("one=runs/a") == ("one", "runs/a")
    assert split_named_path("one=s3://b/date=2024/x") == ("one", "s3://b/date=2024/x")
    assert split_named_path("s3://b/date=2024/x") == (None, "s3://b/date=2024/x")
    assert split_named_path("runs/lr=1/model") == (None, "runs/lr=1/model")


def test_hub_file_that_cannot_be_read_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*arguments: object, **options: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(UserError, match=r"x\.json of owner/name can be read neither .* \(no network\); check the name"):
        hub_file("owner/name", "x.json", None)
