"""Grounders are trained on every family and make the masks of new datasets."""

from pathlib import Path

import pytest
import torch

from factory.config.vocabulary import voc
from factory.dataset.storage import Store
from factory.generation.components import load_components
from factory.grounder.data import OracleDataset
from factory.grounder.folder import save_grounder
from factory.grounder.training import GrounderOptions, GrounderTask
from tests.families.conftest import PROMPTS, REQUESTS, Make, names_of_families, recipe
from tests.support.datasets import BandDetector, make_dataset
from tests.support.oracle_datasets import SEEN
from tests.support.tiny_families import BUILDERS

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and transformers about their own models


_LIKE_OTHERS = {"flux2-klein-base", "flux-schnell", "flux2", "sd", "sdxl"}
"""Variants of rows whose other variant is tested quickly, and U-Nets, whose grounders have tests of their own."""


@pytest.mark.parametrize("name", names_of_families(slow=_LIKE_OTHERS))
def test_oracle_training_and_generation_with_grounders(family: Make, name: str, tmp_path: Path) -> None:
    """`guided` and `paper` are trained on an oracle dataset and make the masks of a new one."""
    oracle = recipe(
        family(name), masks={"source": "detector"}, oracle={"split": "1", "seen": list(SEEN)}, objects={1: 0.5, 2: 0.5}
    )
    make_dataset(oracle, tmp_path / "oracle", BandDetector(voc().names))
    for module in ("guided", "paper"):
        task = GrounderTask([OracleDataset(Store(str(tmp_path / "oracle")))], GrounderOptions(module), "cpu", 1)
        assert task.backbone.transformer == (name in BUILDERS)
        loss = task.loss(0, 2, 0)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in task.model.parameters())
        save_grounder(task.model, task.config, {}, tmp_path / module)
        chosen = recipe(family(name), masks={"source": str(tmp_path / module)})
        assert chosen.masks.noise_level == oracle.masks.noise_level
        parts = load_components(chosen)
        assert len(parts.grounder.ground(parts.generator.generate(REQUESTS), PROMPTS)) == 2
