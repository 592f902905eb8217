"""Guidance scales that increase from step to step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from factory.config.recipe import Recipe, make_recipe
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import init_or_resume
from factory.errors import UserError
from factory.generation.pin import pin_recipe
from factory.generation.preflight import preflight
from factory.generation.run import prepare
from factory.generator.pipeline import PipelineGenerator
from tests.support.requests import requests
from tests.support.tiny_families import tiny_family
from tests.support.tiny_pipeline import tiny_pipeline


def recipe(model: Path, **generator: Any) -> Recipe:
    settings = {"model": str(model), "steps": 4, "guidance": 3.0, **generator}
    return make_recipe({"n": 4, "classes": "voc", "generator": settings, "masks": {"source": "attention"}})


SCHEDULES = ("constant", "linear")


def images(chosen: Recipe) -> list[Any]:
    return [generated.image for generated in PipelineGenerator(chosen).generate(requests(chosen, 2))]


@pytest.mark.parametrize(("xl", "kind"), [(False, StableDiffusionPipeline), (True, StableDiffusionXLPipeline)])
def test_linear_scales_average_to_the_guidance(
    xl: bool, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipeline itself reads the scales: a property of it records them."""
    chosen = recipe(tiny_pipeline(tmp_path / "model", xl=xl), guidance_schedule="linear")
    plain = images(recipe(tmp_path / "model"))
    scales: list[float] = []

    def record(pipeline: Any) -> float:
        scales.append(pipeline._guidance_scale)
        return scales[-1]

    monkeypatch.setattr(kind, "guidance_scale", property(record))
    linear, again = images(chosen), images(chosen)
    used = sorted(set(scales))
    assert used == scales[: len(used)] == [1.5, 2.5, 3.5, 4.5]
    assert np.mean(used) == 3.0
    assert all(np.array_equal(a, b) for a, b in zip(linear, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(linear, plain, strict=True))


def test_the_schedule_is_linear_for_stickers_only_without_an_own_guidance() -> None:
    def schedule(**generator: Any) -> str:
        return make_recipe({"n": 1, "generator": generator}).generator.guidance_schedule

    assert schedule() == schedule(model="stickers", steps=12) == "linear"
    assert (
        schedule(model="stickers", guidance=3) == schedule(model="stickers-turbo") == schedule(model="x") == "constant"
    )
    assert schedule(guidance=4, guidance_schedule="linear") == "linear"


def test_datasets_with_a_constant_scale_keep_their_fingerprint() -> None:
    constant, linear = (
        make_recipe({"n": 1, "generator": {"guidance": 3, "guidance_schedule": name}}) for name in SCHEDULES
    )
    assert "guidance_schedule" not in constant.content()["generator"]
    assert constant.fingerprint() != linear.fingerprint()


def test_transformers_are_refused(tmp_path: Path) -> None:
    model = tiny_family("sana", tmp_path / "sana")
    with pytest.raises(UserError, match="constant guidance scale; `linear` is for Stable Diffusion 1, 2 and XL"):
        preflight(recipe(model, guidance_schedule="linear", width=128, height=128))


def test_a_schedule_without_guidance_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """But a dataset that has one, of an earlier version, can be resumed."""
    without_effect = recipe(tiny_model, guidance=1.0, guidance_schedule="linear")
    with pytest.raises(UserError, match="schedule `linear` has no effect with guidance 1, which disables guidance"):
        preflight(without_effect)
    store = Store(str(tmp_path / "out"))
    stored = init_or_resume(store, pin_recipe(without_effect))
    store.put("receipts/000000.json", b"{}")
    given = prepare(recipe(tiny_model, guidance=1.0, dtype="float32"), store)
    assert init_or_resume(store, given).fingerprint() == stored.fingerprint()
    assert len(images(prepare(stored, store))) == 2
