"""`factory plan`, and what all commands about datasets have in common."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import factory.cli.plan as cli_plan
from factory.config.plan import PlannedShard
from factory.config.recipe import make_recipe
from factory.dataset.receipts import Tally
from factory.dataset.rejected_images import RejectedImages
from factory.generation import estimate
from factory.generation.shard import Produced
from tests.support.in_process import error, output


@pytest.mark.parametrize("command", ["generate", "plan", "status", "verify", "models", "preview"])
def test_every_command_has_an_example_and_json_output(command: str) -> None:
    shown = output(command, "--help")
    assert "Example: factory " + command in " ".join(shown.split())
    assert "--json" in shown


def test_plan_balances_the_classes() -> None:
    arguments = ("--classes", "coco", "--n", 800, "--objects", "1:0.5,2:0.5", "--rate", 2, "--json")
    data = json.loads(output("plan", *arguments))
    assert (data["per_class_least"], data["per_class_most"], data["shards_planned"]) == (15, 15, 8)
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


@pytest.mark.parametrize(
    ("n", "shard_size", "expected"),
    [(40, 100, [8, 8]), (40, 5, [5, 5]), (9, 100, [8, 8]), (3, 100, [3, 3])],
)
def test_a_trial_uses_batches_as_large_as_those_of_the_run(
    monkeypatch: pytest.MonkeyPatch, n: int, shard_size: int, expected: list[int]
) -> None:
    """A GPU takes nearly as long for one image as for eight, so the rate of another batch size would be misleading."""
    sizes = list[int]()

    def produce(shard: PlannedShard, *_: Any) -> Produced:
        sizes.append(len(shard.samples))
        return Produced([], Tally(len(shard.samples), Counter(), ()), {}, RejectedImages())

    monkeypatch.setattr(estimate, "load_components", lambda recipe, device: None)
    monkeypatch.setattr(estimate, "produce", produce)
    estimate.estimate_run(make_recipe({"n": n, "shard_size": shard_size, "batch": 8}))
    assert sizes == expected


def test_samples_that_are_skipped_need_no_space_and_their_time_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `attempts: 1`, half of the samples take the time of all of them."""
    trial = estimate.Estimate(planned=8, accepted=4, attempts=8, seconds=2.0, bytes_per_sample=1000.0)
    monkeypatch.setattr(estimate, "estimate_run", lambda recipe: trial)
    data = json.loads(output("plan", "--n", 800, "--attempts", 1, "--measure", "--json"))
    assert (data["rate"], data["bytes"]) == (2.0, 400_000)
    assert data["hours"] == pytest.approx(800 * (2.0 / 8) / 3600)
