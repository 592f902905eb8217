"""LoRAs in the formats of several tools change the weights as they should; other files are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from factory.config.prompts import Prompt
from factory.config.recipe import make_recipe
from factory.config.sections import GeneratorRecipe
from factory.errors import UserError
from factory.generation.pin import pin_recipe
from factory.generation.preflight import preflight
from factory.generator.families import PIPELINES
from factory.generator.interface import Request
from factory.generator.load import check_generator, load_pipeline, pin_generator
from factory.generator.lora import lora_file, lora_settings
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.folder import check_fits, read_grounder_config
from tests.support.tiny_families import tiny_family

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "encoder.layers.0.self_attn.q_proj"
OUTPUT = LAYER.replace("to_q", "to_out.0")
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
RANK, ALPHA = 2, 1.0


def matrices(seed: int, outputs: int, inputs: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """(down, up) of a random change."""
    random = torch.Generator().manual_seed(seed)
    kernel = (1,) * (len(inputs) - 1)
    return torch.randn((RANK, *inputs), generator=random), torch.randn((outputs, RANK, *kernel), generator=random)


CHANGES = {
    f"unet.{LAYER}": (1, 32, (32,)),
    f"unet.{CONVOLUTION}": (2, 32, (32, 3, 3)),
    f"text_encoder.{TEXT}": (3, 32, (32,)),
    f"unet.{OUTPUT}": (4, 32, (32,)),
}


def of_peft(file: Path) -> Path:
    """As diffusers and peft save it: without alpha, the scale is 1."""
    tensors = {}
    for name, change in CHANGES.items():
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = matrices(*change)
    save_file(tensors, file)
    return file


def of_kohya(file: Path) -> Path:
    """As the scripts of kohya save it: other names, and alpha."""
    tensors = {}
    for name, change in CHANGES.items():
        component, _, module = name.partition(".")
        module = module if component == "unet" else f"text_model.{module}"
        key = f"lora_{'unet' if component == 'unet' else 'te'}_{module.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = matrices(*change)
        tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, file)
    return file


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


@pytest.mark.parametrize(("write", "factor"), [(of_peft, 1.0), (of_kohya, ALPHA / RANK)])
def test_a_lora_is_added_to_the_weights(tiny_model: Path, tmp_path: Path, write: Any, factor: float) -> None:
    file = write(tmp_path / "style.safetensors")
    plain = weights(load_pipeline(GeneratorRecipe(model=str(tiny_model)), "cpu"))
    changed = weights(load_pipeline(GeneratorRecipe(model=str(tiny_model), lora=str(file), lora_scale=0.5), "cpu"))
    touched = set()
    for key, before in plain.items():
        name = key.removesuffix(".weight")
        expected = before
        if name in CHANGES:
            down, up = matrices(*CHANGES[name])
            change = torch.einsum("or,r...->o...", up.flatten(1), down)
            expected = before + 0.5 * factor * change
            touched.add(name)
        assert torch.allclose(changed[key], expected, atol=1e-5), key
    assert touched == set(CHANGES)


def test_an_alpha_of_peft_applies_to_the_modules_whose_names_end_in_its_pattern(
    tiny_model: Path, tmp_path: Path
) -> None:
    file = of_peft(tmp_path / "style.safetensors")
    settings = {"unet.lora_alpha": 4, "unet.alpha_pattern": {"attn1.to_q": 1, "q": 9}}
    save_file(load_file(file), file, {"lora_adapter_metadata": json.dumps(settings)})
    plain = weights(load_pipeline(GeneratorRecipe(model=str(tiny_model)), "cpu"))
    changed = weights(load_pipeline(GeneratorRecipe(model=str(tiny_model), lora=str(file)), "cpu"))
    for name, alpha in ((LAYER, 1), (OUTPUT, 4)):
        down, up = matrices(*CHANGES[f"unet.{name}"])
        expected = plain[f"unet.{name}.weight"] + alpha / RANK * (up @ down)
        assert torch.allclose(changed[f"unet.{name}.weight"], expected, atol=1e-5), name
    settings["unet.alpha_pattern"] = {"attn[12].to_q": 1}
    save_file(load_file(file), file, {"lora_adapter_metadata": json.dumps(settings)})
    with pytest.raises(UserError, match=r"a regular expression \('attn\[12\]\.to_q'\) is not supported"):
        load_pipeline(GeneratorRecipe(model=str(tiny_model), lora=str(file)), "cpu")


@pytest.mark.filterwarnings("ignore")  # of diffusers about its own model
def test_a_lora_for_a_transformer_is_added(tmp_path: Path) -> None:
    model = tiny_family("chroma", tmp_path / "chroma")
    name = "transformer.transformer_blocks.0.attn.to_q"
    down, up = matrices(1, 16, (16,))
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "a.safetensors")
    plain = weights(load_pipeline(GeneratorRecipe(model=str(model)), "cpu"))
    changed = weights(load_pipeline(GeneratorRecipe(model=str(model), lora=str(tmp_path)), "cpu"))
    different = [key for key in plain if not torch.equal(plain[key], changed[key])]
    assert different == [f"{name}.weight"]
    assert torch.allclose(changed[different[0]], plain[different[0]] + up @ down, atol=1e-5)


def test_a_recipe_pins_a_lora_and_its_images_differ(tiny_model: Path, tmp_path: Path) -> None:
    file = of_peft(tmp_path / "style.safetensors")
    prompt = Prompt("a photograph of a dog", ("dog",), ("dog",))
    images = []
    for options in ({}, {"lora": str(file)}, {"lora": str(file)}):
        recipe = pin_recipe(make_recipe({"n": 1, "generator": {"model": str(tiny_model), "steps": 2, **options}}))
        preflight(recipe)
        images.append(PipelineGenerator(recipe).generate([Request(prompt, 3)])[0].image)
    assert np.array_equal(images[1], images[2])
    assert not np.array_equal(images[0], images[1])
    assert recipe.generator.lora_revision is not None
    before = recipe.fingerprint()
    of_kohya(file)
    again = pin_recipe(make_recipe({"n": 1, "generator": {"model": str(tiny_model), "steps": 2, "lora": str(file)}}))
    assert again.fingerprint() != before


@pytest.mark.parametrize(
    ("name", "solver", "steps", "guidance"),
    [
        ("sdxl_lightning_4step_lora.safetensors", "euler-trailing", 4, 0.0),
        ("Hyper-SDXL-8steps-lora.safetensors", "ddim-trailing", 8, 0.0),
        ("Hyper-SDXL-12steps-CFG-lora.safetensors", "ddim-trailing", 12, 5.0),
        ("lcm-lora-sdv1-5.safetensors", "lcm", 4, 1.0),
        ("TCD-SD15-LoRA.safetensors", "tcd", 4, 0.0),
        ("watercolour.safetensors", "model", 20, 5.0),
        ("hyperrealism-with-lightning.safetensors", "model", 20, 5.0),
    ],
)
def test_the_names_of_few_step_loras_set_how_the_model_is_sampled(
    tiny_model: Path, tmp_path: Path, name: str, solver: str, steps: int, guidance: float
) -> None:
    file = of_peft(tmp_path / name)
    pinned = pin_generator(GeneratorRecipe(model=str(tiny_model), lora=str(file)))
    assert (pinned.solver, pinned.steps, pinned.guidance) == (solver, steps, guidance)
    prompt = Prompt("a photograph of a dog", ("dog",), ("dog",))
    recipe = make_recipe({"n": 1, "generator": pinned.model_dump() | {"steps": 2}})
    assert PipelineGenerator(recipe).generate([Request(prompt, 1)])[0].image.shape == (64, 64, 3)


def test_hyper_loras_of_transformers_have_a_scale_of_their_own() -> None:
    flux = PIPELINES["FluxPipeline"]
    assert lora_settings("Hyper-FLUX.1-dev-16steps-lora.safetensors", flux) == {"steps": 16, "lora_scale": 0.125}
    assert lora_settings("Qwen-Image-Lightning-4steps-V1.0", PIPELINES["QwenImagePipeline"]) == {
        "steps": 4,
        "guidance": 1.0,
    }


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"unet.nowhere.lora_A.weight": (2, 32), "unet.nowhere.lora_B.weight": (32, 2)}, "does not fit in nowhere"),
        (
            {f"unet.{LAYER}.lora_A.weight": (2, 32), f"unet.{LAYER}.lora_B.weight": (16, 2)},
            "does not fit in down_blocks",
        ),
        ({f"unet.{LAYER}.lora_A.weight": (2, 32)}, "does not fit in down_blocks"),
        ({f"unet.{LAYER}.lokr_w1": (2, 32)}, "of a kind that is not supported"),
        ({"conv_in.weight": (2, 2)}, "does not fit in conv_in.weight"),
    ],
)
def test_files_that_are_not_a_lora_of_the_model_are_refused(
    tiny_model: Path, tmp_path: Path, tensors: dict[str, tuple[int, ...]], message: str
) -> None:
    file = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, file)
    with pytest.raises(UserError, match=message):
        load_pipeline(GeneratorRecipe(model=str(tiny_model), lora=str(file)), "cpu")


def test_hidden_files_beside_a_lora_are_ignored(tmp_path: Path) -> None:
    """macOS adds ._NAME to each file that it copies to another file system."""
    file = of_peft(tmp_path / "style.safetensors")
    (tmp_path / "._style.safetensors").write_bytes(b"\0\5\x16\7" + bytes(4092))
    assert lora_file(GeneratorRecipe(lora=str(tmp_path))) == file


@pytest.mark.parametrize(
    "settings",
    ["5", "{", '{"unet.lora_alpha": "high"}', '{"unet.lora_alpha": 1, "unet.alpha_pattern": [1]}', "[" * 100_000],
)
def test_settings_of_peft_that_cannot_be_read_are_refused(tiny_model: Path, tmp_path: Path, settings: str) -> None:
    file = of_peft(tmp_path / "style.safetensors")
    save_file(load_file(file), file, {"lora_adapter_metadata": settings})
    with pytest.raises(UserError, match=r"style.safetensors has settings of peft that cannot be read"):
        load_pipeline(GeneratorRecipe(model=str(tiny_model), lora=str(file)), "cpu")


def test_a_lora_that_does_not_exist_is_refused_before_a_dataset_is_created(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "style.bin").write_bytes(b"pickle")
    for name, message in (
        ("./nowhere.safetensors", "there is no LoRA ./nowhere"),
        (str(tmp_path), "has no files that end in .safetensors; give a LoRA in this format"),
        (str(tmp_path / "style.bin"), "is not a LoRA that can be read"),
    ):
        with pytest.raises(UserError, match=message):
            pin_generator(GeneratorRecipe(model=str(tiny_model), lora=name))
    file = tmp_path / "lora.safetensors"
    recipe = GeneratorRecipe(model=str(tiny_model), lora=str(file))
    of_peft(file)
    check_generator(recipe)
    file.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read as a LoRA"):
        check_generator(recipe)
    save_file({f"unet.{LAYER}.lokr_w1": torch.zeros(2, 32)}, file)
    with pytest.raises(UserError, match="of a kind that is not supported"):
        check_generator(recipe)


def test_a_grounder_belongs_to_the_lora_that_it_was_trained_with() -> None:
    from factory.files.embedded_models import grounder_folder

    config = read_grounder_config(grounder_folder())
    generator = GeneratorRecipe(revision=config.revision)
    check_fits("stickers", config, generator)
    with pytest.raises(UserError, match="train a grounder with this LoRA"):
        check_fits("stickers", config, generator.model_copy(update={"lora": "style", "lora_revision": "abc"}))


def test_a_compiled_u_net_is_not_offloaded(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.generator.placement.find_spec", lambda library: library)
    generator = {"model": str(tiny_model), "compile": True}
    with pytest.raises(UserError, match=r"generator\.compile has no effect on a U-Net with engine\.offload"):
        preflight(make_recipe({"n": 1, "generator": generator, "engine": {"offload": True}}))


def test_settings_of_small_gpus_name_the_library_that_they_need(tiny_model: Path) -> None:
    from importlib.util import find_spec

    for section, library in (
        ({"generator": {"model": str(tiny_model), "quantize": "int8"}}, "torchao"),
        ({"generator": {"model": str(tiny_model)}, "engine": {"offload": True}}, "accelerate"),
    ):
        recipe = make_recipe({"n": 1, **section})
        if find_spec(library) is None:
            with pytest.raises(UserError, match=f"needs {library}, which is not installed"):
                preflight(recipe)
        else:
            preflight(recipe)
