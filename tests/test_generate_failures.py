"""Input that `factory generate` rejects, and runs that cannot be complete."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory.config.recipe import make_recipe
from factory.dataset.storage import Store
from factory.generation.run import prepare
from tests.support.datasets import make_dataset
from tests.support.in_process import error, output
from tests.support.program import factory


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "dog,zebar", "--n", 4, "--masks", "detector"], "zebra"),
        (["--classes", "voc"], "the number of samples is missing"),
        (["--classes", "voc", "--n", 4, "--model", "./nowhere"], "there is no model folder"),
        (["--classes", "voc", "--n", 4, "--objects", "two"], "number:share"),
        (["--recipe", "{tiny}", "--masks", "guess"], "unknown source of masks 'guess'"),
        (["--recipe", "{tiny}", "--masks", "sam3:a/b"], "not a source of masks; give --masks detector --detector "),
        (["--recipe", "{tiny}", "--extend"], "there is no dataset to extend at "),
        (["--recipe", "{tiny}", "--gpus-per-worker", "9"], "this machine has 0; give --gpus-per-worker 0"),
    ],
)
def test_bad_input_is_rejected_before_anything_is_written(
    recipe_file: Path, tmp_path: Path, arguments: list[Any], message: str
) -> None:
    given = [str(argument).replace("{tiny}", str(recipe_file)) for argument in arguments]
    assert message in error("generate", *given, "--shards", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unreachable_cluster_is_a_temporary_failure(recipe_file: Path, tmp_path: Path) -> None:
    result = factory("generate", "--recipe", recipe_file, "--address", "127.0.0.1:1", "--shards", tmp_path / "out")
    assert (result.returncode, "nothing is listening at 127.0.0.1:1" in result.stderr) == (75, True)
    assert "Traceback" not in result.stderr


def test_foreign_folder_and_truncated_recipe_are_rejected(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    message = error("generate", "--recipe", recipe_file, "--shards", tmp_path)
    assert "has no recipe.yaml, but contains holiday.jpg" in message
    (tmp_path / "recipe.yaml").write_text("classes: [dog, ")
    assert "cannot parse " in error("generate", "--recipe", recipe_file, "--shards", tmp_path)


def test_a_dataset_without_any_accepted_sample_is_a_failure(recipe_file: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(recipe_file.read_text()) | {
        "filters": {"min_area": 0.999, "max_area": 1},
        "attempts": 1,
        "n": 4,
    }
    (tmp_path / "hard.yaml").write_text(yaml.safe_dump(data))
    out = tmp_path / "out"
    make_dataset(prepare(make_recipe(data), Store(str(out))), out)
    result = factory("generate", "--recipe", tmp_path / "hard.yaml", "--shards", out)
    assert (result.returncode, "done: 0/4 accepted" in result.stderr) == (3, True)
    rejected, advice = result.stdout.splitlines()[1:]
    assert re.fullmatch(r"Rejected: \w+ 4\.", rejected)
    assert advice.startswith("Every sample was rejected in every attempt, by the filters named above.")
    assert json.loads((out / "progress.json").read_text())["accepted"] == 0
    assert "1 is sound" in output("verify", out)
