"""The generator on real diffusers classes: seeds, batches, capture, and errors for folders that are not models."""

import gc
import json
import shutil
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file

from factory.config.prompts import Prompt
from factory.config.recipe import Recipe, make_recipe
from factory.config.sections import GeneratorRecipe
from factory.errors import UserError
from factory.generator.interface import ATTENTION, CLASS_EMBEDDINGS, CROSS_ATTENTION, FEATURES, LATENT
from factory.generator.load import load_pipeline, pin_revision
from factory.generator.noise import mixture
from factory.generator.pipeline import PipelineGenerator
from factory.generator.tokens import class_positions
from tests.support.requests import requests
from tests.support.tiny_pipeline import tiny_pipeline


def changed(data: dict[str, Any], **parts: dict[str, Any]) -> Recipe:
    return make_recipe(data | {name: data[name] | part for name, part in parts.items()})


def test_the_same_requests_give_the_same_images(tiny_recipe: Recipe) -> None:
    first, second = (PipelineGenerator(tiny_recipe).generate(requests(tiny_recipe, 3)) for _ in range(2))
    assert all((a.image == b.image).all() for a, b in zip(first, second, strict=True))
    assert first[0].image.shape == (64, 64, 3)


@pytest.mark.parametrize("solver", ["dpm++", "ddim", "euler", "model"])
def test_an_image_is_the_same_alone_and_in_a_batch(tiny_data: dict[str, Any], solver: str) -> None:
    """Kernels may round differently by batch size: one step of 255 is allowed, another image's influence is not."""
    recipe = changed(tiny_data, generator={"solver": solver, "guidance": 4.0})
    generator, batch = PipelineGenerator(recipe), requests(recipe, 4)
    together = generator.generate(batch)
    for generated, request in zip(together, batch, strict=True):
        alone = generator.generate([request])[0]
        assert np.abs(generated.image.astype(int) - alone.image.astype(int)).max() <= 1


def test_attention_does_not_mix_images_or_guidance_halves(
    tiny_data: dict[str, Any],
) -> None:
    recipe = changed(tiny_data, generator={"guidance": 4.0})
    generator, batch = PipelineGenerator(recipe, needs=frozenset({ATTENTION})), requests(recipe, 4)
    for generated, request in zip(generator.generate(batch), batch, strict=True):
        alone = generator.generate([request])[0]
        assert generated.attention is not None
        assert alone.attention is not None
        for shape, maps in generated.attention.cross.items():
            assert np.allclose(maps, alone.attention.cross[shape], atol=1e-4)
            assert np.allclose(maps.sum(0), 1, atol=1e-4)


def test_reading_sees_the_attention_that_the_unet_computes(tiny_recipe: Recipe) -> None:
    """Against diffusers' own attention scores, by a processor that computes them in the open."""
    generator = PipelineGenerator(tiny_recipe, needs=frozenset({CROSS_ATTENTION, FEATURES}))
    prompts = [request.prompt for request in requests(tiny_recipe, 2)]
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    read = generator.read(latents, prompts)
    unet, seen = generator.pipeline.unet, {}

    class Open(AttnProcessor):
        def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **options: Any) -> Any:
            if encoder_hidden_states is not None:
                query = attn.head_to_batch_dim(attn.to_q(hidden_states))
                key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
                seen[names[attn]] = attn.get_attention_scores(query, key).unflatten(0, (2, -1))
            return super().__call__(attn, hidden_states, encoder_hidden_states, **options)

    names = {module: name for name, module in unet.named_modules()}
    unet.set_attn_processor(Open())
    conditions = generator.conditions(prompts)
    mixed = mixture(generator.scheduler, 0.5)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        generator.call_denoiser(conditions, mixed.signal * latents + mixed.noise * noise, mixed.timestep)
    assert set(seen) == set(read.cross_attention)
    for k, prompt in enumerate(prompts):
        ids = generator.pipeline.tokenizer(prompt.text).input_ids
        for number, own in enumerate(class_positions(generator.pipeline.tokenizer, ids, prompt).classes):
            for name, scores in seen.items():
                maps = read.cross_attention[name][k, :, number].flatten(1)
                assert torch.allclose(maps, scores[k][:, :, list(own)].sum(-1), atol=1e-5)


def test_capturing_changes_no_image(tiny_data: dict[str, Any]) -> None:
    recipe = make_recipe(tiny_data)
    plain = PipelineGenerator(recipe).generate(requests(recipe, 2))
    watched = PipelineGenerator(recipe, needs=frozenset({ATTENTION, FEATURES})).generate(requests(recipe, 2))
    assert all((a.image == b.image).all() for a, b in zip(plain, watched, strict=True))


def test_images_match_the_diffusers_pipeline(tiny_data: dict[str, Any]) -> None:
    recipe = changed(tiny_data, generator={"solver": "model", "guidance": 5.0, "steps": 3})
    (request,) = requests(recipe, 1)
    image = PipelineGenerator(recipe).generate([request])[0].image
    stock = load_pipeline(recipe.generator, "cpu")
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        request.prompt.text,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(request.seed),
    ).images[0]
    assert np.array_equal(image, np.asarray(expected))


def test_features_are_the_outputs_of_every_block(tiny_recipe: Recipe) -> None:
    generated = PipelineGenerator(tiny_recipe, needs=frozenset({FEATURES})).generate(requests(tiny_recipe, 2))
    names = list(generated[0].features)
    assert names == ["in.0", "in.1", "in.2", "in.3", "mid", "out.0", "out.1", "out.2", "out.3"]
    assert generated[0].features["mid"].shape == (32, 4, 4)
    assert not torch.equal(generated[0].features["mid"], generated[1].features["mid"])


@pytest.fixture(scope="module")
def fine_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of 16 x 16 for 64 x 64 pixels, and a finest U-Net level without attention."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tiny_pipeline(tmp_path_factory.mktemp("fine") / "tiny", fine=True)


@pytest.mark.parametrize(
    ("size", "latents", "attended"),
    [({}, (16, 16), [(8, 8), (4, 4)]), ({"width": 72, "height": 88}, (22, 18), [(11, 9), (6, 5)])],
)
def test_shapes_come_from_the_model(
    tiny_data: dict[str, Any], fine_model: Path, size: dict[str, int], latents: tuple[int, int], attended: list[Any]
) -> None:
    recipe = changed(tiny_data, generator={"model": str(fine_model), "guidance": 4.0, **size})
    needs = frozenset({ATTENTION, FEATURES, CROSS_ATTENTION, LATENT})
    generated = PipelineGenerator(recipe, needs=needs).generate(requests(recipe, 2))[0]
    assert generated.image.shape == (4 * latents[0], 4 * latents[1], 3)
    assert generated.latent is not None
    assert generated.latent.shape == (4, *latents)
    assert generated.features["in.0"].shape[1:] == latents
    assert generated.attention is not None
    assert list(generated.attention.cross) == attended
    assert generated.attention.self_attention_shape == attended[0]
    assert {tuple(maps.shape[2:]) for maps in generated.cross_attention.values()} == set(attended)


def test_a_unet_without_a_size_of_its_own_generates_the_size_of_the_recipe(
    tiny_data: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(config | {"sample_size": None}))
    recipe = changed(tiny_data, generator={"model": str(folder), "width": 72, "height": 40})
    assert PipelineGenerator(recipe).generate(requests(recipe, 1))[0].image.shape == (40, 72, 3)


def test_a_unet_without_a_middle_block_is_captured(tiny_data: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "small"))
    config = json.loads((folder / "unet" / "config.json").read_text()) | {"mid_block_type": None}
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if not k.startswith("mid_block")}, weights)
    recipe = changed(tiny_data, generator={"model": str(folder)})
    generated = PipelineGenerator(recipe, needs=frozenset({FEATURES})).generate(requests(recipe, 1))
    assert [name[:2] for name in generated[0].features] == ["in"] * 4 + ["ou"] * 4


def test_the_number_of_threads_of_the_process_changes_no_image(tiny_recipe: Recipe) -> None:
    images = []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        images.append(PipelineGenerator(tiny_recipe).generate(requests(tiny_recipe, 3))[2].image)
    assert (images[0] == images[1]).all()


@pytest.mark.filterwarnings("ignore")
def test_an_xl_pipeline_is_supported(tiny_data: dict[str, Any], tmp_path: Path) -> None:
    recipe = changed(tiny_data, generator={"model": str(tiny_pipeline(tmp_path / "xl", xl=True)), "guidance": 4.0})
    generator, batch = PipelineGenerator(recipe, needs=frozenset({ATTENTION})), requests(recipe, 2)
    together = generator.generate(batch)
    alone = generator.generate([batch[1]])[0]
    assert np.abs(together[1].image.astype(int) - alone.image.astype(int)).max() <= 1


def test_a_generator_is_freed_without_the_garbage_collector(tiny_recipe: Recipe) -> None:
    """Its U-Net may fill a GPU: nothing, such as a hook or a scheduler, may refer back to the generator."""
    generator = PipelineGenerator(tiny_recipe, needs=frozenset({CLASS_EMBEDDINGS}))
    generator.generate(requests(tiny_recipe, 1))
    seen = weakref.ref(generator)
    gc.disable()
    try:
        del generator
        assert seen() is None
    finally:
        gc.enable()


def test_class_names_of_two_words_have_their_own_tokens(tiny_recipe: Recipe) -> None:
    tokenizer = load_pipeline(tiny_recipe.generator, "cpu").tokenizer
    text = "a photograph of a hot dog and a dog"
    prompt = Prompt(text, ("dog", "hot dog"), ("dog", "hot dog"))
    ids = tokenizer(text).input_ids
    found = class_positions(tokenizer, ids, prompt)
    dog, hot_dog = found.classes
    assert tokenizer.decode([ids[k] for k in hot_dog]).strip() == "hot dog"
    assert tokenizer.decode([ids[k] for k in dog]).strip() == "dog"
    assert (found.start, ids[found.end]) == (1, tokenizer.eos_token_id)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [("a photo of 狗", "狗"), ("a photo of 熊猫, at dawn", "熊猫"), ("une tête", "tête"), ("a 🐕.", "🐕")],
)
def test_class_has_all_tokens_of_letters_that_are_spelled_in_bytes(text: str, phrase: str) -> None:
    """General tokenizers spell rare letters in bytes; until the last one, the decoded text ends in U+FFFD."""

    class Bytes:
        def decode(self, ids: list[int], **_: bool) -> str:
            return bytes(ids).decode(errors="replace")

    (own,) = class_positions(Bytes(), list(text.encode()), Prompt(text, (phrase,), (phrase,))).classes
    assert bytes(text.encode()[position] for position in own).decode() == phrase


def test_a_class_without_words_in_the_text_raises_a_clear_error(tiny_recipe: Recipe) -> None:
    tokenizer = load_pipeline(tiny_recipe.generator, "cpu").tokenizer
    with pytest.raises(UserError, match="Write class=words in the prompts file"):
        class_positions(tokenizer, tokenizer("a puppy").input_ids, Prompt("a puppy", ("dog",), ("dog",)))


def test_a_folder_without_a_pipeline_raises_a_clear_error(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"there is no model_index.json"):
        pin_revision(str(tmp_path))
    with pytest.raises(UserError, match=r"there is no model folder ./nowhere"):
        pin_revision("./nowhere")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KolorsPipeline"}))
    with pytest.raises(UserError, match="is a KolorsPipeline; supported pipelines are StableDiffusionPipeline"):
        pin_revision(str(tmp_path))
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    shutil.rmtree(broken / "unet")
    with pytest.raises(UserError, match=r"there is no .*unet/config.json"):
        load_pipeline(GeneratorRecipe(model=str(broken)), "cpu")


def test_the_revision_of_a_folder_changes_with_its_weights(tiny_model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    assert pin_revision(str(copy)) == pin_revision(str(tiny_model))
    with (copy / "unet" / "config.json").open("a") as stream:
        stream.write(" ")
    assert pin_revision(str(copy)) != pin_revision(str(tiny_model))
