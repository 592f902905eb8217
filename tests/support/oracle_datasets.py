"""Recipes of oracle datasets, and short trainings on them."""

from pathlib import Path
from typing import Any

import torch

from factory.config.recipe import Recipe, make_recipe
from factory.config.splits import seen_classes
from factory.config.vocabulary import voc
from factory.dataset.storage import Store
from factory.generation.pin import pin_recipe
from factory.generator.families import FAMILIES
from factory.generator.interface import CLASS_EMBEDDINGS, CROSS_ATTENTION, FEATURES, LATENT
from factory.generator.reading import Reader, Target
from factory.grounder.data import OracleDataset
from factory.grounder.training import GrounderOptions, GrounderTask
from factory.training.loop import train
from factory.training.options import TrainOptions

SEEN = seen_classes(voc(), "1")
EVERYTHING = frozenset({FEATURES, CROSS_ATTENTION, CLASS_EMBEDDINGS, LATENT})
OPTIONS = TrainOptions(steps=12, batch=4, learning_rate=1e-3, ema_decay=0.5, checkpoint_every=3)


def oracle_recipe(model: Path, **changes: Any) -> Recipe:
    data = {
        "n": 16,
        "classes": "voc",
        "objects": {1: 0.5, 2: 0.5},
        "shard_size": 8,
        "batch": 4,
        "generator": {"model": str(model), "steps": 4, "guidance": 4.0},
        "masks": {"source": "detector", "noise_level": 0.37},
        "filters": {"min_area": None, "duplicate_distance": None, "max_border": None},
        "oracle": {"split": "1", "seen": list(SEEN)},
    }
    return pin_recipe(make_recipe(data | changes))


def train_briefly(folder: Path, out: Path, module: str = "guided", stop_at: int | None = None) -> Path:
    task = GrounderTask([OracleDataset(Store(str(folder)))], GrounderOptions(module=module), "cpu", OPTIONS.steps)
    if stop_at is not None:
        original_loss = task.loss

        def loss(step: int, batch: int, seed: int) -> torch.Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            return original_loss(step, batch, seed)

        task.loss = loss
    return train(task, OPTIONS, out, lambda text: None)


def read_blocks(unet: Any, needs: frozenset[str], batch: int) -> dict[str, torch.Tensor]:
    """The features of a U-Net of Stable Diffusion 1 for a batch of latents of 64 x 64."""
    reader = Reader(unet, FAMILIES[0], (64, 64), Target(needs))
    arguments = {
        "sample": torch.empty(batch, 4, 64, 64),
        "timestep": torch.tensor(1),
        "encoder_hidden_states": torch.empty(batch, 77, 768),
    }
    with torch.no_grad():
        return reader.read(arguments, 1, None).blocks
