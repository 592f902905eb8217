"""The command line as a process: its start, help texts, signals, and errors in one sentence with an exit code."""

import json
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import typer.main

from factory import exit_codes, log_format, signals
from factory.cli.main import app, run
from tests.support.in_process import error, output


def test_help_is_fast_and_loads_no_heavy_library() -> None:
    heavy = ("torch", "ray", "diffusers", "transformers", "numpy", "pyarrow", "PIL")
    script = (
        "import sys\nsys.argv = ['factory', '--help']\nfrom factory.__main__ import run\n"
        "try: run()\nexcept SystemExit: pass\n"
        f"print('HEAVY', [name for name in {heavy} if name in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "HEAVY []" in result.stdout
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 2.5, "typically 0.3 s of CPU time, which depends less on other processes than the duration"


@pytest.mark.parametrize("command", ["render", "train", "evaluate", "draw"])
def test_every_sticker_command_shows_an_example(command: str) -> None:
    assert "Example:" in output("stickers", command, "--help")


def test_render_writes_a_voc_folder_and_prints_json(tmp_path) -> None:
    printed = output("stickers", "render", "--classes", "dog,bus", "--n", 4, "--out", tmp_path / "voc", "--json")
    assert json.loads(printed)["images"] == 4
    assert len(list((tmp_path / "voc" / "JPEGImages").iterdir())) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--classes", "dog,unicorn"), "do not know 'unicorn'"),
        (("--classes", "nowhere.txt"), "no class file nowhere.txt"),
    ],
)
def test_bad_input_is_rejected_before_anything_is_written(tmp_path, arguments, message) -> None:
    assert message in error("stickers", "render", "--out", tmp_path / "voc", *arguments)
    assert not (tmp_path / "voc").exists()


def test_unwritable_output_folder_prints_one_message_and_exits_with_two(tmp_path) -> None:
    """Also: the package can be run with `python -m`."""
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "factory", "stickers", "render", "--n", "1", "--out", tmp_path / "file" / "voc"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "cannot be written" in result.stderr
    assert result.stderr.count("\n") == 1


def commands(command, path=("factory",)):
    yield " ".join(path), command
    for name, sub in getattr(command, "commands", {}).items():
        yield from commands(sub, (*path, name))


def test_every_command_and_option_has_a_help_text() -> None:
    everything = list(commands(typer.main.get_command(app)))
    assert len(everything) > 5
    undocumented = [path for path, command in everything if not command.help]
    undocumented += [
        f"{path} {param.name}" for path, command in everything for param in command.params if not param.help
    ]
    assert undocumented == []


def test_help_names_values_as_other_commands_do() -> None:
    """typer's own labels are <int>, <str>, and <bool> for a flag."""
    for _, command in commands(typer.main.get_command(app)):
        context = command.make_context("factory", [], resilient_parsing=True)
        for param in command.get_params(context):
            label = param.display_type_rich(context)
            assert not set("<>[]") & set(label), param.name
            assert (label == "") == (param.param_type_name == "argument" or param.is_flag), param.name
    generate = typer.main.get_command(app).commands["generate"]
    context = generate.make_context("generate", [], resilient_parsing=True)
    labels = {param.name: param.display_type_rich(context) for param in generate.get_params(context)}
    assert [labels[name] for name in ("as_json", "n", "recipe", "classes")] == ["", "INTEGER", "PATH", "TEXT"]


INTERRUPTED = "Interrupted. Committed work is kept; rerun the same command to resume.\n"


def program_with_command(body: str) -> list[str]:
    script = (
        "from factory.cli import main\nfrom factory.errors import UserError\n"
        f"@main.app.command()\ndef probe() -> None:\n    {body}\nmain.run()"
    )
    return [sys.executable, "-c", script, "probe"]


def test_interrupt_prints_one_message_and_exits_with_130() -> None:
    program = program_with_command("raise KeyboardInterrupt")
    result = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert result.returncode == 130
    assert result.stderr == INTERRUPTED


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_sigterm_and_inherited_ignored_sigint_stop_a_command(number: signal.Signals, code: int) -> None:
    program = program_with_command("import time; print('up', flush=True); time.sleep(60)")
    ignored = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # as a shell does for its background jobs
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=ignored
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (code, INTERRUPTED)


def test_path_that_cannot_be_used_is_one_sentence() -> None:
    """Not every path can be checked before it is used, such as a new folder in /proc."""
    program = program_with_command("import os, sys; os.mkdir(sys.executable + '/x')")
    result = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert result.stderr.startswith("Error: cannot use ")
    assert result.stderr.endswith("/x: Not a directory; give another path, or correct this one.\n")
    assert result.returncode == 2


def test_messages_contain_no_control_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text('n: 1\n"\\e[2J\\u202e": 1\n')
    assert run_here(f"plan --recipe {tmp_path}/recipe.yaml", monkeypatch) == 2
    assert "there is no field \\x1b[2J\\u202e." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["UserError", "TransientError", "RunFailedError"])
def test_each_error_class_prints_its_message_and_exits_with_its_code(name: str) -> None:
    program = program_with_command(f"from factory import errors; raise errors.{name}('The cause and the remedy.')")
    result = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert result.stderr == "Error: The cause and the remedy.\n"
    assert result.returncode == {"UserError": 2, "TransientError": 75, "RunFailedError": 3}[name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("generate --width 512", "there is no option --width (set generator.width in a recipe)"),
        ("invert --attempts 2", "there is no option --attempts"),
        ("generate --shrads out", "there is no option --shrads (did you mean --shards or --shard-size?)"),
        ("generate --device cuda --shards out", "there is no option --device"),
        ("verify set --n 4", "there is no option --n"),
        ("train-grounder set --solver-steps 9", "there is no option --solver-steps (did you mean --train-steps or "
         "--steps?)"),
        ("bootstrap-oracle --masks attention", "there is no option --masks"),
        ("generate --n 4", "--shards is missing"),
        ("generate --out o --steps 2.5", "--solver-steps must be a valid integer, got 2.5"),
        ("generate --out o --batch 0", "--batch must be a whole number from 1 to 1024, or auto, got 0"),
        ("generate --out o --dtype half", "--dtype must be one of float32, tf32, float16, bfloat16; got 'half'"),
        ("generate --n four --out out", "--n must be a valid integer, got four"),
        ("generate --n 0 --out out", "--n must be at least 1, got 0"),
        ("invert --n 0 --real voc --out out", "--n must be at least 1, got 0"),
        ("invert --real s3://b --out out", "--real must be a local path, got the URL s3://b; give a path on this "
         "machine (only datasets can be read from and written to URLs)"),
        ("train-grounder set --out out --module own", "--module must be one of guided, paper, paper-cfg; got 'own'"),
        ("status", "DATASET is missing"),
        ("status one two", "unexpected argument two"),
        ("generate --shards a --n 4 --classes dog, cat", "unexpected argument cat (write lists without "
         "spaces, such as dog,cat)"),
        ("stickers train", "MODEL is missing; choose from autoencoder, diffusion, turbo, detector, judge"),
    ],
)  # fmt: skip
def test_usage_errors_are_one_sentence(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments.split(" ")[: 2 if arguments.startswith("stickers") else 1]
    assert run_here(arguments, monkeypatch) == 2
    assert capsys.readouterr() == ("", f"Error: {message}; see `factory {' '.join(command)} --help`.\n")


def test_deleted_current_directory_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_here("status set", monkeypatch) == 2
    assert capsys.readouterr() == ("", "Error: the current directory has been deleted; change to another one.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("verfy", "there is no command 'verfy' (did you mean 'verify'?); see `factory --help`."),
        ("--bad", "there is no option --bad; see `factory --help`."),
        ("export set --format", "--format requires a value; see `factory COMMAND --help`."),
        ("status set --json=1", "--json does not take a value; see `factory COMMAND --help`."),
    ],
)
def test_usage_errors_before_a_command_is_known(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(arguments, monkeypatch) == 2
    assert capsys.readouterr() == ("", f"Error: {message}\n")


def test_without_a_command_the_help_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("", monkeypatch) == 2
    assert run_here("stickers", monkeypatch) == 2
    shown = capsys.readouterr()
    assert "evaluate-autoencoder" in shown.out
    assert shown.err == ""


def run_here(arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command line that runs in this process."""
    monkeypatch.setattr(sys, "argv", ["factory", *arguments.split()])
    monkeypatch.setattr(signals, "listen", lambda: None)
    monkeypatch.setattr(log_format, "configure", lambda: None)
    with pytest.raises(SystemExit) as end:
        run()
    return int(end.value.code or 0)


def test_documented_exit_codes_are_complete() -> None:
    page = (Path(__file__).parents[1] / "docs/exit-codes.md").read_text()
    documented = [
        int(line.split("|")[1]) for line in page.splitlines() if line.startswith("| ") and line[2].isdecimal()
    ]
    codes = [value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)]
    assert documented == sorted(codes)


def test_closed_pipe_exits_with_one_and_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = program_with_command("print('line\\n' * 100_000)")
    try:
        result = subprocess.run(program, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (1, "")


def test_closed_streams_are_opened(tmp_path: Path) -> None:
    """A shell starts a daemon with `<&- >&- 2>&-`: a run would end, and its next files would be the streams."""
    code = (
        "import os, sys\nfrom factory.__main__ import open_streams\nopen_streams()\n"
        "assert not sys.stderr.isatty() and not sys.stdin.read()\nos.write(2, b'from a library')\n"
        f"with open({str(tmp_path / 'file')!r}, 'w') as file:\n    print('content', file.fileno() > 2, file=file)\n"
    )
    closed = '"$0" -c "$1" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", closed, sys.executable, code], env=os.environ).returncode == 0
    assert (tmp_path / "file").read_text() == "content True\n"


def test_sheet_is_a_hidden_alias_of_preview() -> None:
    registered = {command.name or command.callback.__name__: command for command in app.registered_commands}
    assert registered["sheet"].callback is registered["preview"].callback
    assert registered["sheet"].hidden
    assert not registered["preview"].hidden


def test_preview_of_something_else_than_a_dataset_is_rejected_like_by_other_commands(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    reasons = {"nowhere": "there is no such folder", "file": "it is a file, not a folder", "folder": "it has no recipe"}
    for name in ("status", "preview"):
        for path, reason in reasons.items():
            assert f"{path} is not a dataset: {reason}" in error(name, tmp_path / path)


def test_a_dataset_is_not_generated_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    message = error("generate", "--n", 1, "--out", tmp_path / "file")
    assert "file is a file, not a folder; give a new or empty folder." in message
    assert (tmp_path / "file").read_text() == "mine"
