"""`generator.compile`: the same images but for rounding, and the same attention."""

from pathlib import Path

import numpy as np
import pytest

from factory.generator.interface import ATTENTION, FEATURES, Generated
from factory.generator.pipeline import PipelineGenerator
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
