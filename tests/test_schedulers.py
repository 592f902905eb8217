"""Every supported scheduler gives the images of diffusers' own pipeline; the others are refused."""

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
from factory.generator.interface import FEATURES, Request
from factory.generator.load import load_pipeline, pin_generator
from factory.generator.pipeline import PipelineGenerator
from factory.generator.schedulers import _CONSISTENCY, _ORDINARY
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
    assert np.abs(image.astype(int) - np.asarray(expected).astype(int)).max() <= 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(_ORDINARY | _CONSISTENCY))
def test_a_models_own_scheduler_gives_the_librarys_image(folder: Path, kind: str) -> None:
    assert_like_the_library(recipe(with_scheduler(folder, kind), solver="model"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pipeline", ["LatentConsistencyModelPipeline", "StableDiffusionPipeline"])
def test_a_consistency_model_gives_the_librarys_image(folder: Path, pipeline: str) -> None:
    with_scheduler(as_consistency_model(folder), "LCMScheduler")
    edit(folder / "model_index.json", _class_name=pipeline)
    assert_like_the_library(recipe(folder, solver="model", guidance=8.0))


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
    latents = generator.encode_images(plain[None])
    encoded = generator._pipeline.vae.encode(torch.from_numpy(plain[None]).permute(0, 3, 1, 2) / 127.5 - 1)
    mean, deviation = (torch.tensor(row).view(1, 4, 1, 1) for row in ([-1.6, 1.1, 2.7, -2.0], [8.4, 5.9, 5.5, 5.8]))
    assert torch.allclose(latents * deviation / 0.5 + mean, encoded.latent_dist.mode(), atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "changes", "solver"),
    [
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, "model"),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, "model"),
        ("LCMScheduler", {}, "model"),
        ("TCDScheduler", {}, "model"),
        ("EulerDiscreteScheduler", {}, "dpm++"),
        ("PNDMScheduler", {}, "dpm++"),
    ],
)
def test_a_distilled_model_keeps_its_own_scheduler_unless_another_is_given(
    folder: Path, kind: str, changes: dict[str, Any], solver: str
) -> None:
    with_scheduler(folder, kind, **changes)
    assert pin_generator(GeneratorRecipe(model=str(folder))).solver == solver
    assert pin_generator(GeneratorRecipe(model=str(folder), solver="euler")).solver == "euler"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "changes", "generator", "message"),
    [
        ("LCMScheduler", {}, {"solver": "dpm++"}, "is a consistency model, which only its own LCMScheduler"),
        ("LCMScheduler", {}, {"solver": "model", "steps": 60}, "of at most 50 steps, but the recipe has 60"),
        ("FlowMatchEulerDiscreteScheduler", {}, {}, "which is not supported"),
        ("EDMDPMSolverMultistepScheduler", {"prediction_type": "epsilon"}, {}, "which is not supported"),
        ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}, {}, "predicts"),
    ],
)
def test_unsupported_schedulers_are_refused(
    folder: Path, kind: str, changes: dict[str, Any], generator: dict[str, Any], message: str
) -> None:
    with_scheduler(folder, kind, **changes)
    with pytest.raises(UserError, match=message):
        load_pipeline(recipe(folder, **generator).generator, "cpu")


def test_a_scheduler_with_unseeded_noise_is_refused_unless_a_solver_replaces_it(
    folder: Path,
) -> None:
    edit(folder / "model_index.json", scheduler=["diffusers", "DPMSolverSDEScheduler"])
    edit(folder / "scheduler" / "scheduler_config.json", _class_name="DPMSolverSDEScheduler")
    with pytest.raises(UserError, match=r"would not be reproducible; set generator\.solver"):
        load_pipeline(recipe(folder, solver="model").generator, "cpu")
    PipelineGenerator(recipe(folder, steps=1)).generate([Request(PROMPT, SEED)])
