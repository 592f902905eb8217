"""Every supported scheduler gives the images of diffusers' own pipeline, to the bit; the others are refused."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from factory.config.prompts import Prompt
from factory.config.recipe import Recipe, make_recipe
from factory.config.sections import GeneratorRecipe
from factory.errors import UserError
from factory.generator.interface import FEATURES, HALVES, Request
from factory.generator.latents import Autoencoder
from factory.generator.load import load_pipeline, pin_generator
from factory.generator.noise import mixture, noise_levels
from factory.generator.pipeline import PipelineGenerator
from factory.generator.schedulers import OF_UNETS, SOLVERS, with_solver
from tests.support.tiny_pipeline import tiny_pipeline

PROMPT, SEED = Prompt("a photograph of a dog", ("dog",), ("dog",)), 11


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def with_scheduler(folder: Path, kind: str, **changes: Any) -> Path:
    """The pipeline with another scheduler over the same noise levels."""
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    shutil.rmtree(folder / "scheduler")
    getattr(diffusers, kind).from_config(config | changes).save_pretrained(folder / "scheduler")
    edit(folder / "model_index.json", scheduler=["diffusers", kind])
    return folder


def as_consistency_model(folder: Path) -> Path:
    """The pipeline as one whose U-Net takes the guidance as an input, as latent consistency models do."""
    edit(folder / "unet" / "config.json", time_cond_proj_dim=6)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    channels = tensors["time_embedding.linear_1.weight"].shape[1]
    tensors["time_embedding.cond_proj.weight"] = torch.randn(channels, 6, generator=torch.Generator().manual_seed(0))
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


def recipe(folder: Path, **generator: Any) -> Recipe:
    return make_recipe(
        {"n": 1, "classes": "voc", "generator": {"model": str(folder), "steps": 4, "guidance": 5.0, **generator}}
    )


def assert_like_the_library(chosen: Recipe) -> None:
    image = PipelineGenerator(chosen, needs=frozenset({FEATURES})).generate([Request(PROMPT, SEED)])[0].image
    stock = load_pipeline(chosen.generator, "cpu")
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        PROMPT.text,
        num_inference_steps=chosen.generator.steps,
        guidance_scale=chosen.generator.guidance,
        generator=torch.Generator().manual_seed(SEED),
    ).images[0]
    assert np.array_equal(image, np.asarray(expected))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(OF_UNETS))
def test_a_models_own_scheduler_gives_the_librarys_image(folder: Path, kind: str) -> None:
    assert_like_the_library(recipe(with_scheduler(folder, kind), solver="model"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pipeline", ["LatentConsistencyModelPipeline", "StableDiffusionPipeline"])
def test_a_consistency_model_gives_the_librarys_image(folder: Path, pipeline: str) -> None:
    with_scheduler(as_consistency_model(folder), "LCMScheduler")
    edit(folder / "model_index.json", _class_name=pipeline)
    assert_like_the_library(recipe(folder, solver="model", guidance=8.0))


@pytest.mark.filterwarnings("ignore")
def test_a_consistency_model_has_no_halves_of_guidance(folder: Path) -> None:
    chosen = recipe(with_scheduler(as_consistency_model(folder), "LCMScheduler"), solver="model")
    with pytest.raises(UserError, match="takes the guidance scale as an input; use the module guided or paper"):
        PipelineGenerator(chosen, needs=frozenset({FEATURES, HALVES}))


@pytest.mark.filterwarnings("ignore")
def test_the_statistics_of_playgrounds_latents_are_applied_both_ways(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = tiny_pipeline(tmp_path / "xl", xl=True, kl=True)
    plain = PipelineGenerator(recipe(folder, solver="model")).generate([Request(PROMPT, SEED)])[0].image
    edit(folder / "vae" / "config.json", latents_mean=[-1.6, 1.1, 2.7, -2.0], latents_std=[8.4, 5.9, 5.5, 5.8])
    edit(folder / "vae" / "config.json", scaling_factor=0.5)
    chosen = recipe(folder, solver="model")
    assert_like_the_library(chosen)
    generator = PipelineGenerator(chosen)
    assert not (generator.generate([Request(PROMPT, SEED)])[0].image == plain).all()
    autoencoder = Autoencoder(generator.pipeline, chosen.generator, "cpu", generator.pixels)
    latents = autoencoder.encode(plain[None])
    encoded = generator.pipeline.vae.encode(torch.from_numpy(plain[None]).permute(0, 3, 1, 2) / 127.5 - 1)
    mean, deviation = (torch.tensor(row).view(1, 4, 1, 1) for row in ([-1.6, 1.1, 2.7, -2.0], [8.4, 5.9, 5.5, 5.8]))
    assert torch.allclose(latents * deviation / 0.5 + mean, encoded.latent_dist.mode(), atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "changes", "steps", "guidance"),
    [
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, 4, 0.0),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, 4, 0.0),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, 20, 5.0),
        ("LCMScheduler", {}, 4, 1.0),
        ("TCDScheduler", {}, 4, 1.0),
        ("EulerDiscreteScheduler", {}, 20, 5.0),
        ("PNDMScheduler", {}, 20, 5.0),
    ],
)
def test_a_model_is_sampled_as_its_configuration_says(
    folder: Path, kind: str, changes: dict[str, Any], steps: int, guidance: float
) -> None:
    with_scheduler(folder, kind, **changes)
    pinned = pin_generator(GeneratorRecipe(model=str(folder)))
    assert (pinned.solver, pinned.steps, pinned.guidance) == ("model", steps, guidance)
    given = pin_generator(GeneratorRecipe(model=str(folder), solver="euler", steps=9, guidance=2.0))
    assert (given.solver, given.steps, given.guidance) == ("euler", 9, 2.0)


def test_the_first_example_of_a_models_card_decides(folder: Path) -> None:
    text = """# Model\nUse `num_inference_steps=99`.\n```python\nimage = pipe(prompt).images[0]\n```
```py\nimage = pipe(prompt, num_inference_steps=1, guidance_scale=0.0).images[0]\n```
```py\nimage = pipe(prompt, num_inference_steps=30, guidance_scale=7).images[0]\n```\n"""
    (folder / "README.md").write_text(text)
    pinned = pin_generator(GeneratorRecipe(model=str(folder)))
    assert (pinned.steps, pinned.guidance) == (1, 0.0)
    (folder / "README.md").write_text("```py\npipe(prompt, num_inference_steps=n_steps, guidance_scale=7)\n```\n")
    assert pin_generator(GeneratorRecipe(model=str(folder))).steps == 20


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("solver", ["dpm++", "euler-trailing", "ddim-trailing", "lcm", "tcd"])
def test_a_solver_replaces_the_models_own(folder: Path, solver: str) -> None:
    chosen = recipe(folder, solver=solver, guidance=1.0)
    image = PipelineGenerator(chosen).generate([Request(PROMPT, SEED)])[0].image
    stock = load_pipeline(chosen.generator, "cpu")
    stock.set_progress_bar_config(disable=True)
    kind, changes = SOLVERS[solver]
    stock.scheduler = getattr(diffusers, kind).from_config(stock.scheduler.config, **changes)
    random = torch.Generator().manual_seed(SEED)
    expected = stock(PROMPT.text, num_inference_steps=4, guidance_scale=1.0, generator=random).images[0]
    assert np.array_equal(image, np.asarray(expected))


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_solver_clips_latents_to_the_range_of_pixels(solver: str) -> None:
    """The configuration of a model may lack the field, as that of the embedded one does."""
    chosen = with_solver(diffusers.DPMSolverMultistepScheduler(), solver)
    assert not chosen.config.get("clip_sample")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "changes", "generator", "message"),
    [
        ("LCMScheduler", {}, {"solver": "dpm++"}, "is a consistency model, which only its own LCMScheduler"),
        ("LCMScheduler", {}, {"solver": "model", "steps": 60}, "of at most 50 steps, but the recipe has 60"),
        ("DDIMParallelScheduler", {}, {}, "which is not supported"),
        ("FlowMatchEulerDiscreteScheduler", {}, {}, "which is not supported"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, {"solver": "ddim"}, "works only with its own UniPC"),
        ("EDMEulerScheduler", {"prediction_type": "epsilon"}, {"solver": "euler"}, "works only with its own EDMEuler"),
    ],
)
def test_unsupported_schedulers_are_refused(
    folder: Path, kind: str, changes: dict[str, Any], generator: dict[str, Any], message: str
) -> None:
    with_scheduler(folder, kind, **changes)
    with pytest.raises(UserError, match=message):
        load_pipeline(recipe(folder, **generator).generator, "cpu")


def test_a_scheduler_with_unseeded_noise_is_replaced(folder: Path) -> None:
    edit(folder / "model_index.json", scheduler=["diffusers", "DPMSolverSDEScheduler"])
    edit(folder / "scheduler" / "scheduler_config.json", _class_name="DPMSolverSDEScheduler")
    with pytest.raises(UserError, match=r"would not be reproducible; set generator\.solver"):
        load_pipeline(recipe(folder, solver="model").generator, "cpu")
    assert pin_generator(GeneratorRecipe(model=str(folder))).solver == "dpm++"
    PipelineGenerator(recipe(folder, steps=1, solver="dpm++")).generate([Request(PROMPT, SEED)])


@pytest.mark.parametrize("timestep", [1, 100, 500, 998])
def test_a_noise_level_is_the_same_for_every_kind_of_scheduler(timestep: int) -> None:
    """The share of noise among signal and noise, for the schedules of DDPM, EDM and flow matching."""
    ddim = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    level = round(float(noise_levels(ddim.alphas_cumprod)[timestep]), 4)
    flow, edm = diffusers.FlowMatchEulerDiscreteScheduler(), diffusers.EDMEulerScheduler()
    assert mixture(ddim, level).timestep == timestep
    assert mixture(flow, level).timestep == pytest.approx(1000 * level)
    for scheduler in (ddim, flow, edm):
        mixed = mixture(scheduler, level)
        assert mixed.noise / (mixed.signal + mixed.noise) == pytest.approx(level, abs=1e-4)
