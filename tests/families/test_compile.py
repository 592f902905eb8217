"""`generator.compile`: the same images but for rounding, and the same attention."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factory.generator.families import FAMILIES
from factory.generator.interface import ATTENTION, FEATURES, Generated
from factory.generator.pipeline import PipelineGenerator
from factory.generator.sampler import _compiled
from tests.families.conftest import REQUESTS, recipe
from tests.support.tiny_families import tiny_family

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def _generated(folder: Path, compiled: bool) -> list[Generated]:
    generator = PipelineGenerator(
        recipe(folder, generator={"compile": compiled}), needs=frozenset({ATTENTION, FEATURES})
    )
    return generator.generate(REQUESTS)


@pytest.mark.parametrize("name", ["sd", "flux-dev", "z-image"])
def test_compiled_models_give_the_same_images_and_attention(tmp_path: Path, name: str) -> None:
    folder = tiny_family(name, tmp_path / name)
    for plain, compiled in zip(_generated(folder, False), _generated(folder, True), strict=True):
        difference = np.abs(plain.image.astype(int) - compiled.image.astype(int))
        assert difference.mean() < 1, difference.mean()
        assert plain.attention is not None
        assert compiled.attention is not None
        assert plain.attention.cross.keys() == compiled.attention.cross.keys()
        for shape, heat in plain.attention.cross.items():
            np.testing.assert_allclose(compiled.attention.cross[shape], heat, atol=2e-3)
        assert plain.features.keys() == compiled.features.keys()


def test_every_batch_size_is_compiled_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise rounding depends on the sizes that a worker has seen before; the ninth would not be compiled at all."""
    shapes: list[tuple[Any, ...]] = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        shapes.extend(tuple(value.shape) for value in inputs if isinstance(value, torch.Tensor) and value.ndim == 2)
        return module.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    model = _compiled(torch.nn.Linear(20, 20, bias=False).eval(), FAMILIES[0])
    sizes = [8, 3, 8, *range(1, 13)]
    with torch.inference_mode():
        for size in sizes:
            model(torch.zeros(size, 20))
    compiled = [size for size, _ in shapes if size != 20]
    assert all(type(size) is int for size in compiled), "a size that is not fixed is a symbol"
    assert compiled == [8, 3, 1, 2, 4, 5, 6, 7, 9, 10, 11, 12]
