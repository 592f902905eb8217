"""Settings, components and files of the families."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from factory.config.prompts import Prompt
from factory.config.sections import GeneratorRecipe
from factory.errors import UserError
from factory.generation.preflight import preflight
from factory.generator.families import PIPELINES
from factory.generator.interface import ATTENTION, Request
from factory.generator.load import load_pipeline, pin_generator
from factory.generator.pipeline import PipelineGenerator
from factory.generator.weights import load_tokenizer
from tests.families.conftest import PROMPTS, REQUESTS, Make, recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and transformers about their own models


@pytest.mark.parametrize(
    ("name", "steps", "guidance"),
    [("flux-dev", 28, 3.5), ("flux-schnell", 4, 0.0), ("flux2-klein", 4, 1.0), ("sana", 20, 4.5), ("z-image", 50, 5.0)],
)
def test_steps_and_guidance_are_those_of_the_model(family: Make, name: str, steps: int, guidance: float) -> None:
    pinned = pin_generator(GeneratorRecipe(model=str(family(name))))
    assert (pinned.steps, pinned.guidance, pinned.solver) == (steps, guidance, "model")


@pytest.mark.parametrize(
    ("family_name", "name", "steps", "guidance"),
    [
        ("sd3", "sd3.5-large-turbo", 4, 0.0),
        ("flux-dev", "flux-dev-turbo", 4, 3.5),
        ("sd3", "sd3-de-distilled", 28, 7.0),
        ("sd3", "hyperreal-v2", 28, 7.0),
    ],
)
def test_a_model_for_few_steps_is_known_by_its_name(
    family: Make, tmp_path: Path, family_name: str, name: str, steps: int, guidance: float
) -> None:
    """The scale of FLUX.1 dev is an input of the transformer, which has no value for `without guidance`."""
    folder = tmp_path / name
    folder.symlink_to(family(family_name))
    pinned = pin_generator(GeneratorRecipe(model=str(folder)))
    assert (pinned.steps, pinned.guidance) == (steps, guidance)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("flux-dev", {"generator": {"negative": "blurred"}}, "takes no negative prompt"),
        (
            "sdxl",
            {"generator": {"negative": "blurred", "guidance": 1}},
            "'blurred' has no effect with guidance 1, which",
        ),
        ("z-image", {"generator": {"negative": "blurred", "guidance": 0}}, "give a scale above 0, or remove"),
        ("flux-dev", {"generator": {"solver": "ddim"}}, "works only with its own FlowMatchEulerDiscreteScheduler"),
        ("sd3", {"generator": {"width": 72}}, "must be multiples of 16, the pixels per image token"),
        ("sd3", {"masks": {"source": "attention", "blocks": [0, 3]}}, "contains 3, but .* has the blocks 0 to 2"),
        ("sd3", {"masks": {"source": "attention", "levels": [1]}}, "masks.levels is for U-Nets"),
        ("qwen-image", {"generator": {"steps": 1}}, r"shift_terminal.*; give --steps 2 or more"),
    ],
)
def test_settings_that_a_family_does_not_have_are_refused(
    family: Make, name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        preflight(recipe(family(name), **changes))


@pytest.mark.parametrize(
    ("name", "kind", "config", "message"),
    [
        ("chroma", "FlowMatchHeunDiscreteScheduler", {}, "is a FlowMatchHeunDiscreteScheduler, which is not supported"),
        ("flux-dev", "DDIMScheduler", {}, "supported are FlowMatchEulerDiscreteScheduler"),
        ("z-image", "UniPCMultistepScheduler", {"use_flow_sigmas": True}, "which is not supported"),
        ("pixart-sigma", "FlowMatchEulerDiscreteScheduler", {}, "which is not supported; supported are DDIMScheduler"),
        ("sana", "DPMSolverMultistepScheduler", {"prediction_type": "epsilon"}, "is not configured for flow matching"),
        ("sana", "FlowMatchHeunDiscreteScheduler", {}, None),
        ("sd3", "DEISMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, None),
        ("qwen-image", "UniPCMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0}, None),
    ],
)
def test_schedulers_that_a_pipeline_cannot_call_are_refused(
    family: Make, tmp_path: Path, name: str, kind: str, config: dict[str, Any], message: str | None
) -> None:
    import diffusers

    folder = Path(shutil.copytree(family(name), tmp_path / name))
    shutil.rmtree(folder / "scheduler")
    getattr(diffusers, kind)(**config).save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", kind]}))
    if message is None:
        chosen = recipe(folder)
        preflight(chosen)
        assert PipelineGenerator(chosen).generate(REQUESTS[:1])
        return
    with pytest.raises(UserError, match=message):
        preflight(recipe(folder))


def test_class_names_that_no_text_encoder_knows_are_refused(family: Make) -> None:
    """T5 has no tokens for other scripts; CLIP, which Stable Diffusion 3 has as well, spells them in bytes."""
    with pytest.raises(UserError, match=r"sample \d+: the text encoder does not know the words '猫' of 'a photograph"):
        preflight(recipe(family("chroma"), classes=["dog", "猫"]))
    known = {"text": "a 猫 and a dog", "classes": {"dog": "dog"}}
    preflight(recipe(family("chroma"), classes=["dog", "cat"], prompts=[known]))
    several = recipe(family("sd3"), classes=["dog", "猫"])
    preflight(several)
    prompt = Prompt("a photograph of a 猫", ("猫",), ("猫",))
    assert PipelineGenerator(several, needs=frozenset({ATTENTION})).generate([Request(prompt, 1)])[0].attention


def test_the_output_layer_of_a_language_model_may_be_in_the_file(family: Make, tmp_path: Path) -> None:
    """A text encoder is stored by some with the names and the output layer of the whole language model."""
    folder = Path(shutil.copytree(family("z-image"), tmp_path / "z"))
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    whole = {f"model.{key}": value for key, value in tensors.items()}
    save_file(whole | {"lm_head.weight": tensors["embed_tokens.weight"].clone()}, weights, metadata={"format": "pt"})
    loaded = load_pipeline(GeneratorRecipe(model=str(folder)), "cpu").text_encoder.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in tensors.items())


def test_a_component_may_have_the_former_name_of_its_class(family: Make, tmp_path: Path) -> None:
    """As in the published PixArt-Sigma."""
    folder = Path(shutil.copytree(family("pixart-sigma"), tmp_path / "pixart"))
    file, former = folder / "transformer" / "config.json", "Transformer2DModel"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": former, "num_vector_embeds": None}))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"transformer": ["diffusers", former]}))
    preflight(recipe(folder))
    assert type(load_pipeline(GeneratorRecipe(model=str(folder)), "cpu").transformer).__name__ == f"PixArt{former}"
    shutil.copy(folder / "transformer" / "diffusion_pytorch_model.safetensors", tmp_path / "own.safetensors")
    single = GeneratorRecipe(model=f"{folder}@{tmp_path / 'own.safetensors'}")
    assert type(load_pipeline(single, "cpu").transformer).__name__ == f"PixArt{former}"


def test_a_pipeline_with_its_own_code_is_refused(family: Make, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(family("sd"), tmp_path / "sd"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": ["lcm", "MyPipeline"]}))
    with pytest.raises(UserError, match=r"is a custom pipeline with code in lcm\.py, which is not run; supp"):
        pin_generator(GeneratorRecipe(model=str(folder)))


def test_stable_diffusion_3_works_without_its_largest_text_encoder(family: Make, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(family("sd3"), tmp_path / "sd3"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(
        json.dumps(index | {"text_encoder_3": [None, None], "tokenizer_3": [None, None]})
    )
    for name in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / name)
    chosen = recipe(folder)
    preflight(chosen)
    generator = PipelineGenerator(chosen, needs=frozenset({ATTENTION}))
    conditions = generator.conditions(PROMPTS)
    assert [tokens.encoder.component for tokens in conditions.tokens] == ["text_encoder"]
    attention = generator.generate(REQUESTS)[0].attention
    assert attention is not None
    assert np.allclose(attention.cross[4, 4].sum(0), 1, atol=1e-4)


@pytest.mark.parametrize("name", ["chroma", "z-image"])
def test_a_single_file_and_a_half_precision_variant_of_a_transformer_are_loaded(
    family: Make, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(family(name), tmp_path / "copy"))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    changed = next(key for key in tensors if key.endswith("to_q.weight"))
    save_file(tensors | {changed: tensors[changed] + 1}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    weights.unlink()
    with pytest.raises(UserError, match="transformer holds no weights"):
        preflight(recipe(folder))
    chosen = recipe(folder, generator={"model": f"{folder}@{tmp_path / 'model.safetensors'}"})
    preflight(chosen)
    loaded = load_pipeline(chosen.generator, "cpu")
    assert torch.equal(loaded.transformer.state_dict()[changed], tensors[changed] + 1)
    loaded.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    half = load_pipeline(GeneratorRecipe(model=str(tmp_path / "half"), dtype="float16"), "cpu")
    assert torch.equal(half.transformer.state_dict()[changed], (tensors[changed] + 1).half())
    save_file({key: value for key, value in tensors.items() if key != changed}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"the transformer of .* is missing 1 of its \d+ tensors"):
        load_pipeline(chosen.generator, "cpu")


def test_weights_in_float32_are_loaded_in_the_recipes_precision(family: Make) -> None:
    """The first tensor of Stable Diffusion 3, a table of positions, has the same type in the file and in the model."""
    chosen = recipe(family("sd3"), generator={"dtype": "bfloat16", "steps": 1})
    generator = PipelineGenerator(chosen)
    assert {weight.dtype for weight in generator.pipeline.transformer.parameters()} == {torch.bfloat16}
    assert generator.generate(REQUESTS[:1])


def test_channels_last_is_used_for_convolutions_of_images_alone(family: Make) -> None:
    """The default of CPUs with bfloat16 instructions. The autoencoder of Qwen-Image has convolutions of videos."""
    plain, other = (recipe(family("qwen-image"), generator={"channels_last": value}) for value in (False, True))
    images = [PipelineGenerator(chosen).generate(REQUESTS[:1])[0].image for chosen in (plain, other)]
    assert np.abs(images[0].astype(int) - images[1].astype(int)).max() <= 1


def write_sentencepiece(tokenizer: Path) -> None:
    """Replace a tokenizer's file by one of sentencepiece with the same tokens, as older releases wrote it."""
    from transformers.convert_slow_tokenizer import import_protobuf

    vocabulary = json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    model = import_protobuf().ModelProto()
    model.trainer_spec.unk_id = 2
    for number, (piece, score) in enumerate(vocabulary):
        model.pieces.add(piece=piece, score=score, type=1 if number > 2 else 2 if number == 2 else 3)
    (tokenizer / "spiece.model").write_bytes(model.SerializeToString())
    (tokenizer / "tokenizer.json").unlink()


def test_a_tokenizer_of_sentencepiece_is_the_same(family: Make, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(family("pixart-sigma"), tmp_path / "copy"))
    expected = load_tokenizer(folder / "tokenizer", "T5Tokenizer")(PROMPTS[0].text).input_ids
    write_sentencepiece(folder / "tokenizer")
    assert load_tokenizer(folder / "tokenizer", "T5Tokenizer")(PROMPTS[0].text).input_ids == expected


def test_a_tokenizer_of_sentencepiece_without_it_raises_a_clear_error(
    family: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(family("pixart-sigma"), tmp_path / "copy"))
    write_sentencepiece(folder / "tokenizer")
    monkeypatch.setattr("factory.generator.weights.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"is a file of sentencepiece, .* run `pip install sentencepiece`\.$"):
        preflight(recipe(folder))


def test_every_pipeline_of_the_table_exists_in_diffusers() -> None:
    import diffusers

    for name, kind in PIPELINES.items():
        assert hasattr(diffusers, name)
        assert all(hasattr(diffusers, denoiser) for denoiser in kind.denoiser_classes)
