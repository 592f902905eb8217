"""Training of grounders: interrupted, distributed, and with datasets or checkpoints that do not fit."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from factory.config.vocabulary import voc
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.grounder.data import OracleDataset
from factory.grounder.folder import load_grounder
from factory.grounder.training import GrounderOptions, GrounderTask
from tests.support.datasets import BandDetector, make_dataset
from tests.support.oracle_datasets import oracle_recipe, train_briefly


@pytest.mark.parametrize("module", ["guided", "paper"])
def test_an_interrupted_training_resumes_to_the_same_grounder(oracle: Path, tmp_path: Path, module: str) -> None:
    whole = load_grounder(train_briefly(oracle, tmp_path / "whole", module))[0].state_dict()
    with pytest.raises(KeyboardInterrupt):
        train_briefly(oracle, tmp_path / "cut", module, stop_at=8)
    resumed = load_grounder(train_briefly(oracle, tmp_path / "cut", module))[0].state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Train imports deprecated parts of Ray Data
def test_two_processes_train_the_same_grounder_as_one(oracle: Path, tmp_path: Path) -> None:
    """With Ray Train, each process with half of every batch."""
    from factory.config.sections import EngineRecipe
    from factory.grounder.run import GrounderTraining, train_here
    from factory.training.distributed import train_on_several

    run = GrounderTraining((str(oracle),), str(tmp_path / "one"), steps=6, batch=4, threads=1)
    single = load_grounder(train_here(run, lambda text: None))[0].state_dict()
    again = replace(run, out=str(tmp_path / "two"))
    two = load_grounder(train_on_several(train_here, again, 2, EngineRecipe()))[0].state_dict()
    with pytest.raises(UserError, match="is not divisible by"):
        train_on_several(train_here, replace(run, batch=5), 2, EngineRecipe())
    for name, weight in single.items():
        assert torch.allclose(weight, two[name], atol=5e-3), name


def test_oracles_of_another_backbone_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    model = shutil.copytree(tiny_model, tmp_path / "model")
    for name, level in (("one", 0.37), ("two", 0.7)):
        masks = {"source": "detector", "noise_level": level}
        make_dataset(oracle_recipe(model, n=4, masks=masks), tmp_path / name, BandDetector(voc().names))
    datasets = [OracleDataset(Store(str(tmp_path / name))) for name in ("one", "two")]
    with pytest.raises(
        UserError,
        match=r"cannot be combined with .*: it has the noise level 0.7 instead of 0.37; train on",
    ):
        GrounderTask(datasets, GrounderOptions(), "cpu", 1)
    with (model / "unet" / "config.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(UserError, match="the model now has revision"):
        GrounderTask(datasets[:1], GrounderOptions(), "cpu", 1)


def test_newer_commits_of_a_hub_model_do_not_matter_but_another_lora_does(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub model is loaded at its pinned commit. A LoRA in a local file may have been replaced."""
    from factory.generator import load
    from factory.grounder.shared_recipe import shared_recipe

    monkeypatch.setattr(load, "hub_commit", lambda model: "b" * 40)
    recipe = oracle_recipe(tiny_model, n=4)

    def dataset(**generator: str) -> Any:
        changed = recipe.model_copy(update={"generator": recipe.generator.model_copy(update=generator)})
        return SimpleNamespace(recipe=changed, store=SimpleNamespace(address="oracle"))

    hub = dataset(model="owner/name", revision="a" * 40)
    assert shared_recipe([hub]) is hub.recipe
    (tmp_path / "style.safetensors").write_bytes(b"another")
    with pytest.raises(UserError, match=r"oracle was made with .*style.safetensors of revision old, but the LoRA now"):
        shared_recipe([dataset(lora=str(tmp_path / "style.safetensors"), lora_revision="old")])


def test_a_training_starts_from_a_grounder_of_the_same_kind_only(oracle: Path, trained: Path) -> None:
    task = GrounderTask([OracleDataset(Store(str(oracle)))], GrounderOptions(), "cpu", 1)
    task.load(trained)
    weights = load_grounder(trained)[0].state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in task.model.state_dict().items())
    paper = GrounderTask([OracleDataset(Store(str(oracle)))], GrounderOptions(module="paper"), "cpu", 1)
    with pytest.raises(ValueError, match="does not fit"):
        paper.load(trained)


def test_metrics_count_objects_per_image(oracle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = GrounderTask([OracleDataset(Store(str(oracle)))], GrounderOptions(), "cpu", 1)
    sample = next(sample for sample in task.validation if all(sample.found))
    wrong = np.where(sample.labels == 255, 255, 0).astype(np.uint8)
    monkeypatch.setattr(
        task, "_predict", lambda model, samples: [s.labels if s.key == "right" else wrong for s in samples]
    )
    prompts = {number: SimpleNamespace(classes=("dog", "cat", "bus")[:number]) for number in (1, 2, 3)}
    task.validation = [
        replace(
            sample, key="wrong" if number == 3 else "right", prompt=cast(Any, prompts[number]), found=(True,) * number
        )
        for number in (1, 2, 3)
    ]
    metrics = task.metrics(task.model)
    assert set(metrics) == {"miou_one", "miou_two", "miou_more"}
    assert metrics["miou_two"] > metrics["miou_more"] == 0
