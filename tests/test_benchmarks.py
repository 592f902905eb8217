"""The benchmarks: their documented commands are valid, and they refuse what they cannot measure."""

import argparse
import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import ablations, common, driver, engine, full_size, grounding, memory, pictures, startup, worker
from factory.config.recipe import make_recipe
from factory.config.vocabulary import coco, from_names
from factory.dataset.receipts import receipt_name
from factory.dataset.storage import Store
from factory.engine.state import State
from factory.errors import UserError
from factory.generation.pin import pin_recipe
from factory.stickers.voc_folder import write_voc_folder
from tests.support.receipts import receipt

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
LOG = ROOT / "docs/log.md"
"""Records commands of earlier versions."""
PAGES = [*ROOT.glob("*.md"), *({*ROOT.glob("docs/*.md")} - {LOG}), *FOLDER.glob("*.py"), ROOT / "Makefile"]


class ParsedError(Exception):
    """The arguments of a benchmark are valid."""


def documented_commands() -> list[str]:
    """The commands in docstrings, in the Makefile and in the documentation, without abbreviated ones."""
    found = set[str]()
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        found |= set(re.findall(r"`python -m\s+(benchmarks\.[^`]+)`", text))
        found |= set(re.findall(r"^\s*(?:\$\(BIN\)/)?python -m (benchmarks\.[^`\n]+)$", text, re.MULTILINE))
    return sorted({" ".join(command.split()) for command in found if "..." not in command and "{" not in command})


def parse(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise ParsedError if the benchmark accepts the arguments, before it does anything."""

    def stop(parser: argparse.ArgumentParser) -> None:
        parser.parse_args()
        raise ParsedError

    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(module, "options_of", stop)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    module.main()


def test_every_benchmark_has_a_documented_command() -> None:
    named = {command.split()[0] for command in documented_commands()}
    assert {f"benchmarks.{name}" for name in SCRIPTS} <= named


@pytest.mark.parametrize("command", documented_commands())
def test_documented_command_has_valid_options(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = shlex.split(command)
    with pytest.raises(ParsedError):
        parse(program.removeprefix("benchmarks."), arguments, monkeypatch)


@pytest.mark.parametrize("name", SCRIPTS)
def test_benchmark_refuses_unknown_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        parse(name, ["--no-such-option"], monkeypatch)
    assert error.value.code == 2
    assert f"python -m benchmarks.{name}: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (memory, ["--shards", "0"]),
        (engine, ["--actors", "-1"]),
        (grounding, ["--n", "8"]),
        (ablations, ["o", "--out", "x", "--rows", "no such"]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, ModuleType) else "",
)
def test_invalid_values_are_refused_before_anything_starts(
    module: ModuleType, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", *arguments])
    with pytest.raises(SystemExit) as error:
        module.main()
    assert error.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ablations", ["oracle", "--out", "runs", "--table", "FOLDER"], "--table FOLDER is a folder"),
        ("limits", ["grounder", "--table", "FOLDER"], "--table FOLDER is a folder"),
        ("pictures", ["masks", "grounder", "--out", "x.tiff"], "--out must end in"),
    ],
)
def test_output_that_cannot_be_written_is_reported_before_the_work(
    name: str, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [argument.replace("FOLDER", str(tmp_path)) for argument in arguments]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *given])
    with pytest.raises(UserError, match=message.replace("FOLDER", str(tmp_path))):
        importlib.import_module(f"benchmarks.{name}").main()


def test_figure_of_segmenters_shows_their_own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels were read as those of VOC, whatever the classes of the segmenters."""
    names = ("background", *coco().names)
    (tmp_path / "segmenter.json").write_text(json.dumps({"names": names}))
    write_voc_folder(tmp_path / "real", from_names(["dog", "cat"]), 5, ("noto",), size=64)
    blank = SimpleNamespace(names=names, scores=lambda pixels: torch.zeros(1, len(names), *pixels.shape[2:]))
    monkeypatch.setattr(pictures, "load_segmenter", lambda folder: blank)
    monkeypatch.setattr(pictures, "drawn", lambda heads, rows: rows)
    options = argparse.Namespace(models=[f"a={tmp_path}"], real=str(tmp_path / "real"), images=1)
    rows: Any = pictures.segmenters(options)
    assert {caption.split(",")[0] for caption, _ in rows} <= {"dog", "cat", "cat + dog"}


def test_the_command_and_its_conditions_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/benchmarks/scenes.py", "--name", "two words"])
    parser = common.command_line("What it does.")
    parser.add_argument("--name")
    assert common.options_of(parser).name == "two words"
    assert re.match(r"`python -m benchmarks\.scenes --name 'two words'`, cores: \d+, Python 3", capsys.readouterr().out)


def test_an_error_of_factory_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError("the grounder x does not exist.")

    with pytest.raises(SystemExit) as error:
        common.run(fail)
    assert error.value.code == 2
    assert capsys.readouterr().err == "Error: the grounder x does not exist.\n"


def test_a_driver_that_has_finished_all_shards_is_not_measured_any_longer(tmp_path: Path) -> None:
    recipe = make_recipe({"n": 30, "shard_size": 10})
    store = Store(str(tmp_path))
    (tmp_path / "receipts").mkdir()
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    for number in range(3):
        (tmp_path / receipt_name(number)).write_bytes(receipt(number, 10, 10, recipe.fingerprint()))
    assert driver.drive(store, recipe, 3, seconds=60.0) > 3 / 30


def test_efficiency_is_not_computed_if_some_actors_were_never_ready() -> None:
    watch, state = engine.Stopwatch(4), State(8)
    state.workers = 3
    watch.tick(state)
    with pytest.raises(UserError, match="before all 4 actors were ready; increase"):
        watch.stop(state)
    state.workers = 4
    watch.tick(state)
    state.shards_done = 5
    assert watch.stop(state)[1] == 5


def test_a_failed_command_is_not_reported_as_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys; sys.exit(0 if '--help' in sys.argv else 'full')"
    monkeypatch.setattr(startup, "FACTORY", [sys.executable, "-S", "-c", program])
    monkeypatch.setattr(sys, "argv", ["startup.py"])
    with pytest.raises(SystemExit, match="ended with exit code 1: full"):
        startup.main()


@pytest.mark.filterwarnings("ignore")
def test_every_part_of_a_worker_is_measured(tiny_model: Path) -> None:
    data: dict[str, Any] = {"n": 2, "shard_size": 1, "batch": 1, "attempts": 1, "classes": "voc"}
    data |= {"generator": {"model": str(tiny_model), "steps": 2}, "masks": {"source": "attention"}}
    recipe = pin_recipe(make_recipe(data | {"filters": common.NO_FILTERS}))
    parts = {"U-Net", "decoding", "text encoder", "mask features", "grounder", "total"}
    assert set(worker.seconds_by_part(recipe, 1)) == parts


def test_all_measurements_of_a_model_use_the_same_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def peaks(command: list[str]) -> tuple[float, float, float]:
        commands.append(command)
        return 1.0, 1.0, 1.0

    monkeypatch.setattr(full_size, "peaks", peaks)
    monkeypatch.setattr(full_size, "random_pipeline", lambda shape, folder, dtype: folder)
    full_size.print_rows("sd15", tmp_path, "float32", steps=2, threads=3)
    generate, oracle, train = commands
    assert "threads: 3" in Path(generate[generate.index("--recipe") + 1]).read_text()
    assert oracle[oracle.index("--threads") + 1] == train[train.index("--threads") + 1] == "3"


def test_ablations_train_with_the_given_options_although_a_model_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training resumes or rejects what other options have trained; a model alone does not say which they were."""
    trained: list[tuple[int, Path]] = []

    def train(task: Any, options: Any, folder: Path) -> None:
        trained.append((options.steps, folder))

    (tmp_path / "without-dice-loss" / "model").mkdir(parents=True)
    (tmp_path / "without-dice-loss" / "model" / "config.json").write_text("{}")
    monkeypatch.setattr(ablations, "train", train)
    monkeypatch.setattr(ablations, "OracleDataset", lambda store: store)
    monkeypatch.setattr(ablations, "GrounderTask", lambda *arguments: None)
    options = ["--steps", "7", "--rows", "without dice", "--only-train", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["ablations.py", str(tmp_path), *options])
    ablations.main()
    assert trained == [(7, tmp_path / "without-dice-loss")]
