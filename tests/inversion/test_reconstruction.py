"""Inverted images are reconstructed, in parts if memory is short."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factory.config.plan import Plan
from factory.generation.inversion_recipe import recipe_of_folder
from factory.generation.pin import pin_recipe
from factory.generator.interface import Request
from factory.generator.inversion import InvertingGenerator, psnr
from tests.inversion.conftest import inverting_recipe, real_options


def test_more_steps_restore_the_image_better(folder: Path) -> None:
    """With the embedded model; the autoencoder sets the limit."""
    found = {}
    for steps in (4, 40):
        recipe = pin_recipe(recipe_of_folder(real_options(folder, steps=steps, max_images=2), {}, {})[0])
        generator = InvertingGenerator(recipe)
        samples = Plan(recipe).shard(0).samples
        generated = generator.generate([Request(s.prompt, 0, s.index) for s in samples])
        found[steps] = np.mean([g.measured["psnr"] for g in generated])
        assert generated[0].noise_level == pytest.approx(0.37, abs=1 / steps)
    recipe = pin_recipe(recipe_of_folder(real_options(folder, method="noise", max_images=2), {}, {})[0])
    generator = InvertingGenerator(recipe)
    generated = generator.generate([Request(s.prompt, 0, s.index) for s in Plan(recipe).shard(0).samples])
    assert generated[0].noise_level == 0
    limit = np.mean([g.measured["psnr"] for g in generated])
    assert found[4] < found[40] <= limit + 0.5


def test_psnr_of_known_images() -> None:
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 16, np.uint8)
    assert psnr(black, grey) == pytest.approx(24.05, abs=0.01)
    assert psnr(black, black) == 99


def test_a_batch_of_images_that_does_not_fit_into_memory_is_inverted_in_parts(
    folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = inverting_recipe(folder, tiny_model, method="noise")
    requests = [Request(s.prompt, 0, s.index) for s in Plan(recipe).shard(0).samples[:3]]
    generator, sizes = InvertingGenerator(recipe), []
    round_trip = generator.round_trip

    def limited(images: Any, prompts: Any) -> Any:
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return round_trip(images, prompts)

    monkeypatch.setattr(generator, "round_trip", limited)
    assert len(generator.generate(requests)) == 3
    assert sizes == [3, 2, 1, 1, 1]
