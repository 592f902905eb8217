"""An oracle dataset, captured tensors, and a grounder trained for twelve steps."""

from pathlib import Path

import pytest
import torch

from factory.config.plan import Plan
from factory.config.vocabulary import voc
from factory.generator.interface import Captured
from factory.generator.pipeline import PipelineGenerator
from tests.support.datasets import BandDetector, make_dataset
from tests.support.oracle_datasets import EVERYTHING, oracle_recipe, train_briefly


@pytest.fixture(scope="package")
def oracle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oracle") / "set"
    make_dataset(oracle_recipe(tiny_model), folder, BandDetector(voc().names))
    return folder


@pytest.fixture(scope="package")
def captured(tiny_model: Path) -> tuple[Captured, torch.Tensor]:
    """Captured tensors and images of two prompts with two classes and one with one."""
    recipe = oracle_recipe(tiny_model)
    prompts = sorted((s.prompt for s in Plan(recipe).shard(0).samples), key=lambda prompt: -len(prompt.classes))
    generator = PipelineGenerator(recipe, needs=EVERYTHING)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    read = generator.read(latents, [prompts[0], prompts[1], prompts[-1]])
    return read, torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.fixture(scope="package")
def trained(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_briefly(oracle, tmp_path_factory.mktemp("trained"))
