"""Mistakes that show in a second are found before the dataset's folder is claimed, by `generate` and `plan` alike."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from factory.cli.main import app
from factory.config.plan import Plan
from factory.config.recipe import Recipe, make_recipe
from factory.config.sections import GeneratorRecipe
from factory.dataset.state import init_or_resume, recipe_of
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.generation.pin import pin_recipe
from factory.generation.preflight import preflight
from factory.generation.run import generate
from factory.generator.interface import Request
from factory.generator.load import load_pipeline, pin_generator, pin_revision
from factory.generator.pipeline import PipelineGenerator
from tests.support.sets import make_set

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def recipe(folder: object, **more: Any) -> Recipe:
    generator = {"model": str(folder), "steps": 2} | more.pop("generator", {})
    return make_recipe({"n": 4, "classes": "voc", "shard_size": 2, "generator": generator, **more})


def assert_refused(chosen: Recipe, place: Path, told: str) -> None:
    with pytest.raises(UserError, match=told):
        generate(chosen, Store(str(place)))
    assert not place.exists() or not list(place.iterdir())


@pytest.mark.parametrize(
    ("breaking", "told"),
    [
        (lambda model: shutil.rmtree(model / "tokenizer"), "tokenizer is not a tokenizer"),
        (lambda model: (model / "tokenizer" / "tokenizer.json").write_text("{"), r"the tokenizer in .* cannot be read"),
        (lambda model: (model / "unet" / "config.json").write_text("{"), r"config.json cannot be read"),
        (lambda model: shutil.rmtree(model / "vae"), r"there is no .*vae/config.json"),
        (
            lambda model: (model / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
            "unet holds no weights: there is none of",
        ),
        (lambda model: edit(model / "unet" / "config.json", in_channels=9), "has 9 input and 4 output channels"),
        (
            lambda model: edit(model / "unet" / "config.json", cross_attention_dim=48),
            "expects text embeddings of 48 channels",
        ),
        (
            lambda model: edit(model / "unet" / "config.json", addition_embed_type="text_time"),
            "has additional embeddings 'text_time'",
        ),
        (
            lambda model: edit(model / "model_index.json", unet=["diffusers", "UNet3DConditionModel"]),
            "is a UNet3DConditionModel; supported are UNet2DConditionModel",
        ),
        (lambda model: edit(model / "model_index.json", text_encoder=[None, None]), "does not name a text_encoder"),
        (lambda model: edit(model / "unet" / "config.json", sample_size=None), "has no default size"),
        (
            lambda model: edit(model / "scheduler" / "scheduler_config.json", num_train_timesteps=50),
            "has the noise levels 0 to 49",
        ),
    ],
)
def test_a_pipeline_that_no_worker_could_run_is_refused(
    folder: Path, tmp_path: Path, breaking: Callable[[Path], Any], told: str
) -> None:
    breaking(folder)
    assert_refused(recipe(folder), tmp_path / "out", told)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"generator": {"width": 72}}, "must be multiples of 16"),
        ({"masks": {"source": "attention", "levels": [8]}}, r"masks.levels \[8\] are not among the levels .* \[1, 2\]"),
        ({"generator": {"solver": "model"}}, "would not be reproducible"),
    ],
)
def test_a_recipe_that_does_not_fit_the_model_is_refused(
    folder: Path, tmp_path: Path, more: dict[str, Any], told: str
) -> None:
    edit(folder / "vae" / "config.json", block_out_channels=[8] * 5)
    edit(folder / "model_index.json", scheduler=["diffusers", "DPMSolverSDEScheduler"])
    assert_refused(recipe(folder, **more), tmp_path / "out", told)


@pytest.mark.parametrize("line", ["two puppies at play\tdog", "a very " + "small " * 30 + "dog\tdog"])
def test_a_prompt_whose_class_has_no_words_that_are_read_is_refused_by_generate_and_plan(
    tiny_model: Path, tmp_path: Path, line: str
) -> None:
    lines = [*(f"a photograph of a dog number {number}\tdog" for number in range(7)), line]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    common = ["--classes", "voc", "--n", "8", "--model", str(tiny_model), "--prompts", str(tmp_path / "prompts.txt")]
    out = tmp_path / "out"
    for command in (["plan"], ["generate", "--shards", str(out)]):
        result = CliRunner().invoke(app, [*command, *common, "--masks", "attention"])
        assert result.exit_code != 0
        assert "prompt 8: " in str(result.exception)
    assert not out.exists()
    result = CliRunner().invoke(app, ["plan", *common, "--masks", "detector", "--json"])
    assert result.exit_code == 0, result.exception


def test_captions_too_long_for_the_encoder_are_found(tiny_model: Path) -> None:
    names = [f"{'very ' * 8}long name number {letter}" for letter in "abcdefgh"]
    preflight(recipe(tiny_model, classes=names))
    with pytest.raises(UserError, match=r"sample \d+: the words .* come after the first 24 tokens"):
        preflight(recipe(tiny_model, classes=names, objects={1: 0.5, 2: 0.5}))


def test_a_deleted_feature_extractor_stops_nothing(folder: Path) -> None:
    edit(folder / "model_index.json", feature_extractor=["transformers", "CLIPImageProcessor"])
    chosen = recipe(folder)
    preflight(chosen)
    load_pipeline(chosen.generator, "cpu")


def test_sizes_that_the_levels_do_not_divide_are_made(tiny_model: Path, tmp_path: Path) -> None:
    chosen = recipe(tiny_model, generator={"width": 72, "height": 40, "solver": "ddim"})
    preflight(chosen)
    make_set(chosen, tmp_path / "out")


@pytest.fixture
def offline(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub that cannot be reached, and a cache that has one model."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    cached = tmp_path / "cache" / "models--someone--tiny"
    shutil.copytree(tiny_model, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    detector = tmp_path / "cache" / "models--someone--detector"
    shutil.copytree(tiny_model / "unet", detector / "snapshots" / COMMIT)
    shutil.copytree(cached / "refs", detector / "refs")
    return "someone/tiny"


def test_a_hub_model_in_the_cache_needs_no_network(offline: str, tiny_model: Path) -> None:
    chosen = pin_recipe(recipe(offline, generator={"solver": "ddim"}, masks={"source": "attention"}))
    assert chosen.generator.revision == pin_revision("someone/detector") == COMMIT
    preflight(chosen)
    asked = [Request(sample.prompt, sample.seed(0, 0)) for sample in Plan(chosen).shard(0).samples]
    images = [
        PipelineGenerator(one).generate(asked)[0].image
        for one in (chosen, recipe(tiny_model, generator={"solver": "ddim"}))
    ]
    assert np.array_equal(*images)


def test_a_mistyped_folder_is_not_taken_for_a_hub_model_alone(
    offline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "sd-15").mkdir(parents=True)
    with pytest.raises(UserError, match=r"there is no folder models/sd15 \(did you mean models/sd-15\?\), and no hub"):
        pin_generator(GeneratorRecipe(model="models/sd15"))


def test_a_dataset_without_a_receipt_may_be_begun_with_another_recipe(tiny_model: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    first, second = recipe(tiny_model), recipe(tiny_model, seed=1)
    init_or_resume(store, first)
    store.create("train/000000.tar", b"made by a worker that was killed before its receipt")
    assert init_or_resume(store, second).fingerprint() == second.fingerprint()
    assert recipe_of(store).fingerprint() == second.fingerprint()
    assert not store.list("train")
    store.create("receipts/000000.json", b"{}")
    with pytest.raises(UserError, match="seed: 1 -> 0"):
        init_or_resume(store, first)
