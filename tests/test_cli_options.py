"""Options: their spelling and help, and those that commands reject."""

import errno
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import typer.main
from typer.testing import CliRunner

from factory import exit_codes
from factory.cli.generate import generate
from factory.cli.main import app
from factory.cli.options import _FIELDS as FIELDS
from factory.cli.options import assemble
from factory.cli.oracle import bootstrap_oracle
from factory.config.recipe import Recipe
from tests.support.export_datasets import make_dataset
from tests.support.in_process import error, invoke


@pytest.mark.parametrize("rate", ["nan", "inf", "0"])
def test_plan_with_an_invalid_rate_is_rejected(rate: str) -> None:
    message = error("plan", "--classes", "dog", "--n", "4", "--rate", rate)
    assert message == f"--rate must be a number above 0, got {rate}."


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["plan", "--classes", "dog", "--n", "1", "--measure", "--rate", "2"], "--rate 2 has no effect with --measure"),
        (["plan", "--classes", "dog", "--n", "1", "--workers", "2"], "--workers 2 has no effect without an estimate"),
        (["run", "job.yaml", "--set", "n"], "--set must be name=value, as in --set n=1000; got n."),
        (["bootstrap-oracle", "--recipe", "RECIPE", "--out", "o"], "is not that of an oracle dataset; add --split."),
        (["invert", "--real", "r", "--recipe", "RECIPE", "--out", "o"], "`generator:` must be a section with fields"),
        (["prompts", "--lm", "x", "--lm-model", "y", "--n", "1", "--out", "o"], "--lm-model names a model on a server"),
        (["prompts", "--lm", "http://x", "--dtype", "float16", "--n", "1", "--out", "o"], "--dtype float16 has no eff"),
        (["prompts", "--lm", "http://x", "--device", "cpu", "--n", "1", "--out", "o"], "--device cpu has no effect wi"),
    ],
)
def test_options_that_do_not_fit_together_are_rejected(command: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("n: 4\n" + ("generator: tiny\n" if command[0] == "invert" else ""))
    places = {"RECIPE": str(tmp_path / "recipe.yaml"), "o": str(tmp_path / "out")}
    assert message in error(*(places.get(word, word) for word in command))
    assert not (tmp_path / "out").exists()


def test_a_dataset_with_other_masks_is_not_resumed_as_an_oracle_dataset(tmp_path: Path) -> None:
    """The advice was to add --split, with which the recipe differs from that of the dataset."""
    out = tmp_path / "set"
    make_dataset(out, shards=())
    assert error("bootstrap-oracle", "--shards", out) == (
        f"{out} is a dataset, but not an oracle dataset; give another --shards."
    )


def test_misspelt_number_of_samples_in_a_recipe_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("N: 4\n")
    assert "there is no field N (did you mean n?)" in error("plan", "--recipe", recipe)
    recipe.write_text("classes: [dog]\n")
    assert error("plan", "--recipe", recipe).startswith("the number of samples is missing; give --n")


def test_options_allow_what_the_recipe_allows() -> None:
    """So a wrong value is reported under the name of its option, and by `factory run` before the first step."""
    options = {**get_type_hints(bootstrap_oracle, include_extras=True), **get_type_hints(generate, include_extras=True)}
    for name, (*sections, field) in FIELDS.items():
        model: Any = Recipe
        for section in sections:
            model = model.model_fields[section].annotation
        if name not in options or field in ("batch", "noise_level"):
            continue
        info, (kind, option) = model.model_fields[field], get_args(options[name])
        limits = {
            side: getattr(limit, side) for limit in info.metadata for side in ("ge", "le", "lt") if hasattr(limit, side)
        }
        highest = limits["lt"] - 1 if "lt" in limits else limits.get("le")
        assert (option.min, option.max) == (limits.get("ge"), highest), name
        if get_origin(info.annotation) is Literal:
            assert info.annotation in get_args(kind), name


def test_preview_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    make_dataset(tmp_path / "set", shards=range(1))
    (tmp_path / "file").write_text("")
    assert "cannot be written" in error("preview", tmp_path / "set", "--n", "1", "--out", tmp_path / "file/sheet.png")


def test_preview_on_a_full_disk_keeps_the_previous_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "set", shards=range(1))
    sheet, write = tmp_path / "sheet.png", Path.write_bytes
    sheet.write_bytes(b"previous")

    def fill(path: Path, data: bytes) -> int:
        write(path, data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    message = error("preview", tmp_path / "set", "--n", "1", "--out", sheet, code=exit_codes.TRY_AGAIN)
    assert "no space left for" in message
    assert sheet.read_bytes() == b"previous"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "sheet.png"]


def test_class_names_of_the_option_may_name_a_vocabulary() -> None:
    assert assemble(None, None, {"classes": "coco", "n": 1}).classes == "coco"


@pytest.mark.parametrize("command", ["evaluate-segmenter", "compare-segmenters"])
def test_image_set_of_a_coco_folder_is_rejected(command: str, tmp_path: Path) -> None:
    (tmp_path / "segmenter.json").write_text('{"names": ["background", "dog"]}')
    options = ["--annotations", "instances.json", "--real-set", "train", "--device", "cpu"]
    name = "a=" if command == "compare-segmenters" else ""
    assert "--real-set train has no effect with --annotations" in error(
        command, f"{name}{tmp_path}", "--real", f"{name}images", *options
    )


def parameters(name: str) -> dict[str, list[str]]:
    """Option spellings by parameter name; arguments by metavar."""
    command = typer.main.get_command(app).commands[name]
    return {
        (param.metavar if param.param_type_name == "argument" else param.name): param.opts for param in command.params
    }


@pytest.mark.parametrize("name", ["status", "verify", "preview", "export", "train-grounder", "train-segmenter"])
def test_commands_read_datasets_as_the_same_argument(name: str) -> None:
    assert any(str(metavar).startswith("DATASET") for metavar in parameters(name))


@pytest.mark.parametrize("name", ["generate", "bootstrap-oracle", "invert", "export", "train-grounder", "preview"])
def test_commands_write_to_the_same_option(name: str) -> None:
    assert "--out" in parameters(name)["out"]


@pytest.mark.parametrize(
    ("name", "parameter", "spelling"),
    [
        ("generate", "out", "--shards"),
        ("bootstrap-oracle", "out", "--shards"),
        ("invert", "out", "--shards"),
        ("run", "dry_run", "--dry"),
        ("generate", "steps", "--solver-steps"),
        ("generate", "steps", "--steps"),
        ("train-grounder", "steps", "--train-steps"),
        ("train-grounder", "steps", "--steps"),
        ("train-segmenter", "steps", "--train-steps"),
        ("train-segmenter", "steps", "--steps"),
    ],
)
def test_former_and_explicit_spellings_are_accepted(name: str, parameter: str, spelling: str) -> None:
    assert spelling in parameters(name)[parameter]


@pytest.mark.parametrize("option", [("--seed", "-1"), ("--seed", "4294967296"), ("--threads", "-1")])
@pytest.mark.parametrize(
    "command",
    [
        ["train-segmenter", "set", "--out", "OUT"],
        ["train-grounder", "set", "--out", "OUT"],
    ],
)
def test_seeds_and_threads_of_trainings_out_of_range_are_usage_errors(
    command: list[str], option: tuple[str, str], tmp_path: Path
) -> None:
    command = [word.replace("OUT", str(tmp_path / "out")) for word in command]
    result = invoke(*command, *option)
    assert result.exit_code == 2
    assert f"Invalid value for '{option[0]}'" in result.stderr


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["generate", "--shards", "a", "--out", "b", "--n", "1"], "--shards or --out"),
        (["generate", "--shards", "a", "--n", "1", "--n", "2"], "--n"),
        (["stickers", "train", "detector", "--train-steps", "1", "--steps", "2"], "--train-steps or --steps"),
    ],
)
def test_options_given_twice_are_rejected(command: list[str], names: str) -> None:
    """Of two values, the parser silently took the last one: `--shards a --out b` wrote to b."""
    result = invoke(*command)
    assert result.exit_code == 2
    assert f"{names} is given 2 times, but takes one value" in result.stderr


def test_completion_ignores_an_option_that_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Tab key printed the error instead of names."""
    monkeypatch.setenv("COMP_WORDS", "factory generate --n 1 --n 2 --guid")
    monkeypatch.setenv("COMP_CWORD", "6")
    result = CliRunner().invoke(app, [], prog_name="factory", env={"_FACTORY_COMPLETE": "complete_bash"})
    assert result.stdout.split() == ["--guidance", "--guidance-schedule"]


@pytest.mark.parametrize("option", [["--force"], ["--workers", "2"]])
def test_options_of_a_repair_require_one(option: list[str], tmp_path: Path) -> None:
    assert f"{' '.join(option)} has no effect without --repair" in error("verify", tmp_path, *option)


def test_gpus_of_detectors_require_a_pool_of_detectors(tmp_path: Path) -> None:
    command = ["bootstrap-oracle", "--classes", "voc", "--split", "1", "--n", "4", "--gpus-per-detector", "0.5"]
    message = error(*command, "--shards", tmp_path / "oracle")
    assert "--gpus-per-detector 0.5 has no effect without a pool of detectors; add --detectors" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["seed", "batch", "attempts", "shard_size"])
def test_help_states_the_default_of_the_recipe(name: str) -> None:
    command = typer.main.get_command(app).commands["generate"]
    (text,) = (param.help for param in command.params if param.name == name)
    assert re.search(rf"\b{Recipe.model_fields[name].default} by default", text)
