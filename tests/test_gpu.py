"""Tests on a GPU: `make test-gpu` runs them, and they fail without a GPU."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from factory.config.plan import Plan
from factory.config.recipe import make_recipe
from factory.generation.components import load_components
from factory.generation.fitting_batch import MAX_BATCH, measured_batch
from factory.generation.pin import pin_recipe
from factory.generation.shard import produce
from factory.generator.interface import ATTENTION, Request
from factory.generator.pipeline import PipelineGenerator

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    assert torch.cuda.is_available(), "these tests are of a GPU and none is here"


def test_a_shard_made_twice_has_the_same_bytes(tiny_data: dict[str, Any]) -> None:
    recipe = make_recipe(tiny_data)
    shard = Plan(recipe).shard(0)
    results = []
    for _ in range(2):
        with ThreadPoolExecutor(1) as encoder:
            made = produce(shard, recipe, load_components(recipe, "cuda"), encoder)
            results.append([job.result().members for job in made.samples])
    assert results[0] == results[1]
    assert len(results[0]) == len(shard.samples)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_images_of_a_gpu_are_those_of_a_cpu_but_for_rounding(
    tiny_data: dict[str, Any], dtype: str, channels_last: bool
) -> None:
    """The noise is drawn on the CPU, so the device changes the rounding alone.

    Images of different seeds differ by 3 to 4 grey levels on average, those of one seed in bfloat16 by 0.1.
    """
    exact = make_recipe(tiny_data)
    changed = tiny_data | {"generator": tiny_data["generator"] | {"dtype": dtype, "channels_last": channels_last}}
    asked = [Request(one.prompt, one.seed(0, 0)) for one in Plan(exact).shard(0).samples]
    on_cpu = PipelineGenerator(exact).generate(asked)
    on_gpu = PipelineGenerator(make_recipe(changed), "cuda", frozenset({ATTENTION})).generate(asked)
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert np.abs(one.image.astype(int) - other.image.astype(int)).mean() < 1
        assert other.attention is not None


def test_a_batch_that_does_not_fit_is_generated_in_parts(
    tiny_data: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """With memory for a part of the batch, as on a GPU that other programs use."""
    recipe = make_recipe(tiny_data | {"generator": tiny_data["generator"] | {"width": 512, "height": 512}})
    (request,) = [Request(s.prompt, s.seed(0, 0)) for s in Plan(recipe).shard(0).samples][:1]
    generator, total = PipelineGenerator(recipe, "cuda"), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    generator.generate([request] * 4)
    fraction = torch.cuda.max_memory_reserved() / total
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(fraction)
    try:
        images = generator.generate([request] * 32)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(images) == 32
    assert "this worker now generates" in caplog.text


def test_the_measured_batch_fits(tiny_data: dict[str, Any]) -> None:
    recipe = pin_recipe(make_recipe(tiny_data))
    batch = measured_batch(recipe, 1.0)
    assert 1 <= batch <= MAX_BATCH
    large = recipe.model_copy(update={"batch": batch, "n": batch, "shard_size": batch})
    with ThreadPoolExecutor(1) as encoder:
        produce(Plan(large).shard(0), large, load_components(large, "cuda"), encoder)
    assert torch.cuda.memory_stats()["num_ooms"] == 0
