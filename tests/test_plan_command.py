"""`factory plan`, and what all commands about datasets have in common."""

import json
import shutil
from pathlib import Path

import pytest

import factory.cli.plan as cli_plan
from tests.support.in_process import error, output


@pytest.mark.parametrize("command", ["generate", "plan", "status", "verify", "models", "preview"])
def test_every_command_has_an_example_and_json_output(command: str) -> None:
    shown = output(command, "--help")
    assert "Example: factory " + command in " ".join(shown.split())
    assert "--json" in shown


def test_plan_balances_the_classes() -> None:
    arguments = ("--classes", "coco", "--n", 800, "--objects", "1:0.5,2:0.5", "--rate", 2, "--json")
    data = json.loads(output("plan", *arguments))
    assert (data["per_class_least"], data["per_class_most"], data["shards"]) == (15, 15, 8)
    assert data["hours"] == pytest.approx(800 / 2 / 3600)
    assert data["sampling"]["steps"] == 8


def test_plan_shows_how_the_model_is_sampled(tiny_model: Path, tmp_path: Path) -> None:
    """The values may be those of the model's card."""
    assert "\nstickers: 8 steps, guidance 3 on average, " in output("plan", "--n", 8, "--dtype", "float32")
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "README.md").write_text("```\npipe(prompt, num_inference_steps=1, guidance_scale=0.0)\n```\n")
    options = ("--n", 8, "--classes", "dog,cat", "--dtype", "float16")
    assert f"\n{model}: 1 step, guidance 0, float16." in output("plan", "--model", model, *options)


def test_plan_rejects_a_recipe_of_an_older_format_as_generate_does(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("format: 2\nn: 8\nclasses: coco\n")
    for command in (["plan"], ["generate", "--shards", str(tmp_path / "set")]):
        message = error(*command, "--recipe", tmp_path / "recipe.yaml")
        assert "has format 2; this version samples images and reads masks differently" in message


def test_plan_says_which_samples_it_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_plan, "_COUNTED", 80)
    printed = [output("plan", "--classes", "coco", "--n", n) for n in (80, 800)]
    assert "\nEach of 80 classes appears 1 time." in printed[0]
    assert "\nIn the first 80 samples, each of 80 classes appears 1 time." in printed[1]
