"""Model files: variants, single files, broken and foreign files; every tensor is accounted for."""

import functools
import json
import shutil
from collections.abc import Callable
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
from factory.generator.interface import Request
from factory.generator.latents import Autoencoder
from factory.generator.load import check_generator, load_pipeline, pin_generator, pin_revision, split_checkpoint
from factory.generator.pipeline import PipelineGenerator
from tests.support.checkpoint import write_checkpoint
from tests.support.tiny_pipeline import tiny_pipeline

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
PROMPT = Prompt("a photograph of a dog", ("dog",), ("dog",))


@pytest.fixture(scope="module")
def kl_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("kl") / "tiny", kl=True)


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def edit_weights(folder: Path, component: str, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / component / f"{WEIGHTS[component]}.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def image(model: object, needs: frozenset[str] = frozenset(), **generator: Any) -> Any:
    recipe = make_recipe(
        {"n": 1, "classes": "voc", "generator": {"model": str(model), "steps": 2, "solver": "ddim", **generator}}
    )
    return PipelineGenerator(recipe, needs=needs).generate([Request(PROMPT, 7)])[0].image


@pytest.mark.parametrize("component", WEIGHTS)
def test_a_component_whose_file_lacks_tensors_is_refused(copied: Path, component: str) -> None:
    def cut(tensors: dict[str, Any]) -> None:
        for name in sorted(tensors)[-2:]:  # not the table of embeddings, which preflight would miss
            del tensors[name]

    edit_weights(copied, component, cut)
    with pytest.raises(UserError, match=rf"the {component} of .* is missing 2 of its \d+ tensors"):
        load_pipeline(GeneratorRecipe(model=str(copied)), "cpu")


@pytest.mark.parametrize("component", WEIGHTS)
def test_a_component_whose_file_holds_other_tensors_is_refused(copied: Path, component: str) -> None:
    edit_weights(copied, component, lambda tensors: tensors.update({"lora.up.weight": torch.zeros(2)}))
    with pytest.raises(UserError, match=rf"the {component} of .* has tensors that its configuration does not have"):
        load_pipeline(GeneratorRecipe(model=str(copied)), "cpu")


def test_tensors_of_another_shape_and_truncated_files_are_refused(copied: Path) -> None:
    edit_weights(copied, "unet", lambda tensors: tensors.update({"conv_in.bias": torch.zeros(5)}))
    with pytest.raises(UserError, match=r"the unet of the model .* cannot be loaded"):
        load_pipeline(GeneratorRecipe(model=str(copied)), "cpu")
    file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"diffusion_pytorch_model.safetensors is incomplete or damaged"):
        load_pipeline(GeneratorRecipe(model=str(copied)), "cpu")
    file.unlink()
    with pytest.raises(UserError, match="unet holds no weights"):
        load_pipeline(GeneratorRecipe(model=str(copied)), "cpu")


def test_position_ids_of_older_releases_are_accepted(copied: Path) -> None:
    name = "embeddings.position_ids"
    edit_weights(copied, "text_encoder", lambda tensors: tensors.update({name: torch.arange(24)[None]}))
    load_pipeline(GeneratorRecipe(model=str(copied)), "cpu")


def test_unused_components_may_be_missing(copied: Path) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (copied / "model_index.json").write_text(json.dumps(index))
    assert load_pipeline(GeneratorRecipe(model=str(copied)), "cpu").safety_checker is None


def test_a_folder_with_only_a_half_precision_variant_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    load_pipeline(GeneratorRecipe(model=str(tiny_model), dtype="float16"), "cpu").save_pretrained(
        tmp_path / "half", variant="fp16"
    )
    assert not list((tmp_path / "half").rglob("diffusion_pytorch_model.safetensors"))
    half = load_pipeline(GeneratorRecipe(model=str(tmp_path / "half"), dtype="float16"), "cpu")
    plain = load_pipeline(GeneratorRecipe(model=str(tiny_model), dtype="float16"), "cpu")
    for name in WEIGHTS:
        theirs = getattr(plain, name).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in getattr(half, name).state_dict().items())


def test_weights_are_loaded_directly_in_the_recipes_precision(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UNet2DConditionModel

    seen = []
    build = UNet2DConditionModel.__init__

    @functools.wraps(build)
    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        seen.append(self.conv_in.weight.dtype)

    monkeypatch.setattr(UNet2DConditionModel, "__init__", watched)
    pipeline = load_pipeline(GeneratorRecipe(model=str(tiny_model), dtype="bfloat16"), "cpu")
    assert seen == [torch.bfloat16]
    assert {pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def test_tf32_is_float32_on_a_cpu(tiny_model: Path) -> None:
    assert (image(tiny_model, dtype="tf32") == image(tiny_model)).all()


def test_a_single_file_gives_the_images_of_its_folder(kl_model: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(GeneratorRecipe(model=str(kl_model)), "cpu")
    file = write_checkpoint(pipeline, tmp_path / "model.safetensors")
    named = f"{kl_model}@{file}"
    assert (image(named) == image(kl_model)).all()
    pinned = pin_generator(GeneratorRecipe(model=named))
    assert len(str(pinned.revision)) == 40
    assert pin_revision(named) == pinned.revision
    torch.save({"state_dict": load_file(file)}, tmp_path / "model.ckpt")
    assert (image(f"{kl_model}@{tmp_path / 'model.ckpt'}") == image(kl_model)).all()


@pytest.mark.parametrize("xl", [False, True])
def test_a_single_file_with_the_names_of_open_clip_gives_the_same_weights(xl: bool, tmp_path: Path) -> None:
    """Stable Diffusion 2, and the second text encoder of Stable Diffusion XL."""
    folder = tiny_pipeline(tmp_path / "model", xl=xl, kl=True)
    pipeline = load_pipeline(GeneratorRecipe(model=str(folder)), "cpu")
    file = write_checkpoint(pipeline, tmp_path / "model.safetensors", open_clip=not xl)
    loaded = load_pipeline(GeneratorRecipe(model=f"{folder}@{file}"), "cpu")
    for name in ("unet", "vae", "text_encoder", *(["text_encoder_2"] if xl else [])):
        theirs = getattr(pipeline, name).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in getattr(loaded, name).state_dict().items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sd_xl_turbo_1.0_fp16", ("euler-trailing", 4, 0.0)),
        ("sdxl_lightning_2step", ("euler-trailing", 2, 0.0)),
        ("DreamShaperXL_Lightning", ("euler-trailing", 4, 0.0)),
        ("hyperrealism_v3", ("model", 20, 5.0)),
    ],
)
def test_a_single_file_of_a_few_step_model_is_known_by_its_name(
    kl_model: Path, tmp_path: Path, name: str, expected: tuple[str, int, float]
) -> None:
    """The pipeline that configures it may be that of the model from which it was distilled."""
    save_file({"model.diffusion_model.a": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    pinned = pin_generator(GeneratorRecipe(model=f"{kl_model}@{tmp_path / f'{name}.safetensors'}"))
    assert (pinned.solver, pinned.steps, pinned.guidance) == expected
    own = pin_generator(GeneratorRecipe(model=pinned.model, solver="ddim", steps=7, guidance=3.0))
    assert (own.solver, own.steps, own.guidance) == ("ddim", 7, 3.0)


@pytest.mark.parametrize("pipeline", [None, "owner/pipe", "sd@v2/pipe", "FOLDER/u@h/pipe"])
def test_paths_of_single_files_may_contain_the_separator(
    pipeline: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "u@h").mkdir()
    for name in ("model.safetensors", "v@2.ckpt"):
        (tmp_path / "u@h" / name).touch()
        for file in (f"u@h/{name}", str(tmp_path / "u@h" / name)):
            config = pipeline and pipeline.replace("FOLDER", str(tmp_path))
            named = file if config is None else f"{config}@{file}"
            assert split_checkpoint(named) == (config, file)


def test_single_files_without_a_whole_model_are_refused(kl_model: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(GeneratorRecipe(model=str(kl_model)), "cpu")
    dropped = "model.diffusion_model.input_blocks.0.0.bias"
    file = write_checkpoint(pipeline, tmp_path / "cut.safetensors", drop=dropped)
    with pytest.raises(UserError, match=r"the unet of .* is missing 1 of its \d+ tensors \(conv_in.bias\)"):
        load_pipeline(GeneratorRecipe(model=f"{kl_model}@{file}"), "cpu")
    save_file({"lora_unet.up.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="is not a Stable Diffusion checkpoint"):
        pin_generator(GeneratorRecipe(model=str(tmp_path / "lora.safetensors")))
    contains_itself: dict[str, Any] = {}
    contains_itself["state_dict"] = contains_itself
    torch.save(contains_itself, tmp_path / "endless.ckpt")
    with pytest.raises(UserError, match="is not a Stable Diffusion checkpoint"):
        pin_generator(GeneratorRecipe(model=str(tmp_path / "endless.ckpt")))
    (tmp_path / "junk.ckpt").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"cannot be read as a checkpoint .it is not a file of tensors, or has"):
        pin_generator(GeneratorRecipe(model=str(tmp_path / "junk.ckpt")))
    with pytest.raises(UserError, match=r"there is no checkpoint file .*nowhere.safetensors"):
        pin_generator(GeneratorRecipe(model=str(tmp_path / "nowhere.safetensors")))


def test_a_checkpoint_of_quantised_weights_is_refused_before_it_is_loaded(kl_model: Path, tmp_path: Path) -> None:
    """ComfyUI's files in 8 bits have a scale beside each weight."""
    name, file = "model.diffusion_model.input_blocks.0.0", tmp_path / "fp8.safetensors"
    weight = torch.zeros(1, 1).to(torch.float8_e4m3fn)
    save_file({f"{name}.weight": weight, f"{name}.scale_weight": torch.ones(())}, file)
    with pytest.raises(UserError, match=r"has quantised weights \(.*scale_weight\), which are not supported; give"):
        check_generator(GeneratorRecipe(model=f"{kl_model}@{file}"))


@pytest.mark.filterwarnings("ignore")
def test_images_have_no_watermark_if_the_package_for_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl"
    monkeypatch.setattr(f"{module}.is_invisible_watermark_available", lambda: True)
    monkeypatch.setattr(f"{module}.StableDiffusionXLWatermarker", object, raising=False)
    pipeline = load_pipeline(GeneratorRecipe(model=str(tiny_pipeline(tmp_path / "xl", xl=True))), "cpu")
    assert pipeline.watermark is None


@pytest.mark.parametrize(
    ("component", "tensor", "message"),
    [
        ("unet", "conv_out.bias", "the U-Net of the model"),
        ("vae", "decoder.layers.0.bias", "the autoencoder's decoder of the model"),
        ("text_encoder", "final_layer_norm.bias", "the text encoder of the model"),
    ],
)
def test_values_that_are_not_finite_raise_where_they_arise(
    copied: Path, component: str, tensor: str, message: str
) -> None:
    edit_weights(copied, component, lambda tensors: tensors[tensor].fill_(torch.nan))
    with pytest.raises(UserError, match=f"{message} .* returns values that are not finite: its weights are broken"):
        image(copied)


def test_an_overflow_in_half_precision_suggests_another_dtype(copied: Path) -> None:
    edit_weights(copied, "unet", lambda tensors: tensors["conv_out.weight"].fill_(60000))
    with pytest.raises(UserError, match="it overflows in float16; give another --dtype"):
        image(copied, dtype="float16")


def test_an_overflow_of_the_encoder_raises_a_clear_error(copied: Path) -> None:
    edit_weights(copied, "vae", lambda tensors: tensors["encoder.layers.0.bias"].fill_(torch.inf))
    recipe = make_recipe({"n": 1, "classes": "voc", "generator": {"model": str(copied)}})
    autoencoder = Autoencoder(PipelineGenerator(recipe).pipeline, recipe.generator, "cpu", (64, 64))
    with pytest.raises(UserError, match="the autoencoder's encoder of the model"):
        autoencoder.encode(np.zeros((1, 64, 64, 3), np.uint8))


def test_an_autoencoder_that_overflows_in_half_precision_is_called_in_float32(tmp_path: Path) -> None:
    folder = tiny_pipeline(tmp_path / "kl", kl=True)
    for half in ("encoder", "decoder"):  # sums of about 60,000 +- 15,000, of which float16 has those below 65,504
        edit_weights(folder, "vae", lambda tensors, half=half: tensors[f"{half}.conv_in.weight"].mul_(100_000))
        edit_weights(folder, "vae", lambda tensors, half=half: tensors[f"{half}.conv_in.bias"].fill_(60_000))
    recipe = make_recipe({"n": 1, "classes": "voc", "generator": {"model": str(folder), "dtype": "float16"}})
    autoencoder = Autoencoder(PipelineGenerator(recipe).pipeline, recipe.generator, "cpu", (64, 64))
    autoencoder.decode(autoencoder.encode(np.full((1, 64, 64, 3), 255, np.uint8)))


def test_large_batches_are_decoded_in_parts(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(
        {"n": 5, "classes": "voc", "generator": {"model": str(tiny_model), "steps": 1, "solver": "ddim"}}
    )
    requests = [Request(PROMPT, seed) for seed in range(5)]
    together = PipelineGenerator(recipe).generate(requests)
    monkeypatch.setattr("factory.generator.sampler._DECODED_TOGETHER", 2 * 64 * 64)
    monkeypatch.setattr("factory.generator.latents._ENCODED_TOGETHER", 2 * 64 * 64)
    generator, sizes = PipelineGenerator(recipe), []
    vae = generator.pipeline.vae
    vae.decoder.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    in_parts = generator.generate(requests)
    generator.generate(requests[:2])
    assert sizes == [1, 1, 1, 1, 1, 2]
    for generated, other in zip(together, in_parts, strict=True):
        assert np.abs(generated.image.astype(int) - other.image.astype(int)).max() <= 1
    vae.encoder.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    autoencoder = Autoencoder(generator.pipeline, recipe.generator, "cpu", generator.pixels)
    autoencoder.encode(np.stack([generated.image for generated in in_parts]))
    assert sizes[6:] == [2, 2, 1]


@pytest.mark.parametrize(("width", "tiled"), [(1024, False), (1032, True)])
def test_images_over_1024_are_decoded_in_tiles(kl_model: Path, width: int, tiled: bool) -> None:
    generator = {"model": str(kl_model), "steps": 1, "solver": "ddim", "width": width, "height": 64}
    pipeline = PipelineGenerator(make_recipe({"n": 1, "classes": "voc", "generator": generator}))
    tiles: list[int] = []
    pipeline.pipeline.vae.decoder.register_forward_pre_hook(lambda module, given: tiles.append(len(given[0])))
    assert pipeline.generate([Request(PROMPT, 1)])[0].image.shape == (64, width, 3)
    assert (len(tiles) > 1) == tiled
