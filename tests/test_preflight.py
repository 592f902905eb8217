"""Invalid recipes and models are rejected before a dataset is created, by `generate` and `plan` alike."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factory.config.recipe import Recipe
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.generation.pin import pin_recipe
from factory.generation.preflight import preflight
from factory.generation.run import generate
from factory.generator.load import load_pipeline, pin_revision
from tests.support.datasets import make_dataset
from tests.support.in_process import invoke
from tests.support.recipes import two_shards


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def assert_rejected(invalid: Recipe, out: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(invalid, Store(str(out)))
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
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
        (
            lambda model: edit(model / "unet" / "config.json", quantization_config={"quant_method": "bitsandbytes"}),
            "the unet of .* is stored with quantised weights, which are not supported",
        ),
        (lambda model: edit(model / "model_index.json", text_encoder=[None, None]), "does not name a text_encoder"),
        (lambda model: edit(model / "unet" / "config.json", sample_size=None), "has no default size"),
        (
            lambda model: edit(model / "unet" / "config.json", sample_size="large"),
            r"a configuration file of .* contains a value that cannot be used \(too many values",
        ),
        (lambda model: edit(model / "unet" / "config.json", down_block_types=7), "a value that cannot be used"),
        (lambda model: edit(model / "vae" / "config.json", block_out_channels=8), "a value that cannot be used"),
        (
            lambda model: edit(model / "tokenizer" / "tokenizer_config.json", model_max_length=None),
            r"does not say how many tokens the text encoder reads \(model_max_length",
        ),
        (
            lambda model: os.truncate(model / "unet" / "diffusion_pytorch_model.safetensors", 100_000),
            r"unet/diffusion_pytorch_model\.safetensors is incomplete or damaged \(.*\); download it again",
        ),
    ],
)
def test_unusable_pipeline_is_rejected(
    folder: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(folder)
    assert_rejected(two_shards(folder), tmp_path / "out", message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": {"width": 72}}, "must be multiples of 16"),
        (
            {"masks": {"source": "attention", "levels": [8]}},
            r"masks.levels \[8\] are not among the .* levels .* \[1, 2\]",
        ),
        ({"generator": {"solver": "model"}}, "would not be reproducible"),
        ({"generator": {"solver": "lcm", "steps": 60}}, "is a consistency model of at most 50 steps"),
        ({"masks": {"source": "attention", "blocks": [0]}}, "masks.blocks is for transformers"),
    ],
)
def test_recipe_that_does_not_fit_the_model_is_rejected(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    edit(folder / "vae" / "config.json", block_out_channels=[8] * 5)
    edit(folder / "model_index.json", scheduler=["diffusers", "DPMSolverSDEScheduler"])
    assert_rejected(two_shards(folder, **changes), tmp_path / "out", message)


def test_local_model_that_changed_under_a_pinned_recipe_is_rejected(folder: Path, tmp_path: Path) -> None:
    pinned = pin_recipe(two_shards(folder))
    edit(folder / "scheduler" / "scheduler_config.json", steps_offset=2)
    found = pin_revision(str(folder))
    message = f"pins the text-to-image model .* as {pinned.generator.revision}, but its content is now {found}"
    assert_rejected(pinned, tmp_path / "out", message)


@pytest.mark.parametrize("line", ["two puppies at play\tdog", "a very " + "small " * 30 + "dog\tdog"])
def test_prompt_without_tokens_for_its_class_is_rejected(tiny_model: Path, tmp_path: Path, line: str) -> None:
    lines = [*(f"a photograph of a dog number {number}\tdog" for number in range(7)), line]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    common = ["--classes", "voc", "--n", "8", "--model", str(tiny_model), "--prompts", str(tmp_path / "prompts.txt")]
    out = tmp_path / "out"
    for command in (["plan"], ["generate", "--shards", str(out)]):
        result = invoke(*command, *common, "--masks", "attention")
        assert result.exit_code != 0
        assert "prompt 8: " in str(result.exception)
    assert not out.exists()
    result = invoke("plan", *common, "--masks", "detector", "--json")
    assert result.exit_code == 0, result.exception


def test_custom_prompts_whose_end_is_not_read_are_reported(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = {"text": "a photograph of a dog " + "in the snow " * 30, "classes": ["dog"]}
    prompts = [{"text": "a photograph of a dog", "classes": ["dog"]}, long, long]
    preflight(two_shards(tiny_model, prompts=prompts))
    assert "2 prompts are longer than the 24 tokens that the text encoder of" in caplog.text
    assert caplog.text.strip().endswith("so images may not show the end: prompt 2, prompt 3.")
    caplog.clear()
    preflight(two_shards(tiny_model, prompts=prompts[:1]))
    assert "longer than" not in caplog.text


def test_captions_too_long_for_the_encoder_are_rejected(tiny_model: Path) -> None:
    names = [f"{'very ' * 8}long name number {letter}" for letter in "abcdefgh"]
    preflight(two_shards(tiny_model, classes=names))
    with pytest.raises(UserError, match=r"sample \d+: the words .* come after the first 24 tokens"):
        preflight(two_shards(tiny_model, classes=names, objects={1: 0.5, 2: 0.5}))


def test_missing_feature_extractor_is_ignored(folder: Path) -> None:
    edit(folder / "model_index.json", feature_extractor=["transformers", "CLIPImageProcessor"])
    checked = two_shards(folder)
    preflight(checked)
    load_pipeline(checked.generator, "cpu")


def test_sizes_not_divisible_by_the_unet_levels_work(tiny_model: Path, tmp_path: Path) -> None:
    odd = two_shards(tiny_model, generator={"width": 72, "height": 40, "solver": "ddim"})
    preflight(odd)
    make_dataset(odd, tmp_path / "out")
