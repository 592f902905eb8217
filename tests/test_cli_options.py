"""Options that commands reject, and the messages."""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from factory.cli.generate import generate
from factory.cli.options import _FIELDS as FIELDS
from factory.cli.options import assemble
from factory.cli.oracle import bootstrap_oracle
from factory.config.recipe import Recipe
from tests.support.export_datasets import make_dataset
from tests.support.in_process import error


@pytest.mark.parametrize("option", [["--rate", "nan"], ["--rate", "inf"], ["--rate", "0"], ["--workers", "0"]])
def test_plan_with_an_invalid_rate_or_number_of_workers_is_rejected(option: list[str]) -> None:
    message = "--workers must be at least 1 and --rate a number above 0, got "
    assert error("plan", "--classes", "dog", "--n", "4", *option).startswith(message)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["plan", "--classes", "dog", "--n", "1", "--measure", "--rate", "2"], "--rate 2 has no effect with --measure"),
        (["run", "job.yaml", "--set", "n"], "--set must be name=value, as in --set n=1000; got n."),
        (["bootstrap-oracle", "--recipe", "RECIPE", "--out", "o"], "is not that of an oracle dataset; add --split."),
        (["invert", "--real", "r", "--recipe", "RECIPE", "--out", "o"], "`generator:` must be a section with fields"),
        (["prompts", "--lm", "x", "--lm-model", "y", "--n", "1", "--out", "o"], "--lm-model names a model on a server"),
        (["prompts", "--lm", "http://x", "--dtype", "float16", "--n", "1", "--out", "o"], "--dtype float16 has no eff"),
        (["prompts", "--lm", "http://x", "--device", "cpu", "--n", "1", "--out", "o"], "--device cpu has no effect wi"),
        (["train-segmenter", "s", "--address", "auto", "--out", "o"], "--address auto has no effect with one device"),
        (["train-grounder", "s", "--address", "auto", "--out", "o"], "--address auto has no effect with one device"),
    ],
)
def test_options_that_do_not_fit_together_are_rejected(command: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("n: 4\n" + ("generator: tiny\n" if command[0] == "invert" else ""))
    places = {"RECIPE": str(tmp_path / "recipe.yaml"), "o": str(tmp_path / "out")}
    assert message in error(*(places.get(word, word) for word in command))
    assert not (tmp_path / "out").exists()


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


def test_class_names_of_the_option_may_name_a_vocabulary() -> None:
    assert assemble(None, None, {"classes": "coco", "n": 1}).classes == "coco"


@pytest.mark.parametrize(
    "command", [["evaluate-segmenter", "model", "--real"], ["compare-segmenters", "a=b", "--real"]]
)
def test_image_set_of_a_coco_folder_is_rejected(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.segmenter.measure.open_segmenter", lambda folder, images: None)
    monkeypatch.setattr("factory.evaluation.protocol_2.open_segmenter", lambda folder, images: None)
    options = ["--annotations", "instances.json", "--real-set", "train", "--device", "cpu"]
    folder = "a=images" if command[0] == "compare-segmenters" else "images"
    assert "--real-set train has no effect with --annotations" in error(*command, folder, *options)


def test_old_and_new_spelling_of_the_export_folder_are_not_mixed() -> None:
    message = error("export", "set", "--format", "coco", "--out", "a", "--to", "b")
    assert "--to is the old spelling of --out, got --out a and --to b" in message
