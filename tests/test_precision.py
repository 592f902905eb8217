"""The default precision: bfloat16 on GPUs for new datasets, the dataset's own for those that exist."""

from pathlib import Path
from typing import Any

import pytest

from factory.config.recipe import Recipe, make_recipe
from factory.dataset.state import init_or_resume
from factory.dataset.storage import Store
from factory.generation import precision
from factory.generation.run import prepare


def _recipe(model: Path, dtype: str | None = None, **engine: Any) -> Recipe:
    generator = {"model": str(model), "steps": 2} | ({} if dtype is None else {"dtype": dtype})
    return make_recipe({"n": 2, "classes": "voc", "generator": generator, "engine": engine})


@pytest.fixture(params=[0, 2])
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(precision, "local_gpus", lambda: request.param)
    return int(request.param)


def test_new_datasets_use_bfloat16_on_gpus(tiny_model: Path, tmp_path: Path, gpus: int) -> None:
    def dtype(recipe: Recipe) -> str:
        return prepare(recipe, Store(str(tmp_path / "out"))).generator.dtype

    assert dtype(_recipe(tiny_model)) == ("bfloat16" if gpus else "float32")
    assert dtype(_recipe(tiny_model, gpus_per_worker=0)) == "float32"
    assert dtype(_recipe(tiny_model, gpus_per_worker=0.5)) == "bfloat16"
    assert dtype(_recipe(tiny_model, "float16")) == "float16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dataset_keeps_its_precision_on_another_machine(
    tiny_model: Path, tmp_path: Path, dtype: str, gpus: int
) -> None:
    store = Store(str(tmp_path / "out"))
    created = init_or_resume(store, prepare(_recipe(tiny_model, dtype), store))
    assert prepare(_recipe(tiny_model), store).fingerprint() == created.fingerprint()


def test_local_gpus_are_those_of_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr(precision, "_DEVICE_FILES", (str(tmp_path / "none"),))
    assert precision.local_gpus() == 0
    monkeypatch.setattr(precision, "_DEVICE_FILES", (str(tmp_path),))
    assert precision.local_gpus() == 3
