"""The images of every family are those of its diffusers pipeline."""

from typing import Any

import numpy as np
import pytest
import torch

from factory.generation.preflight import preflight
from factory.generator.interface import ATTENTION, FEATURES, LATENT
from factory.generator.load import load_pipeline
from factory.generator.pipeline import PipelineGenerator
from tests.families.conftest import ALL, PROMPTS, REQUESTS, Make, recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and transformers about their own models


@pytest.mark.parametrize("name", ALL)
def test_images_are_those_of_the_librarys_pipeline(family: Make, name: str) -> None:
    """Also: a repeated call gives the same bytes, and a batch the same as its images alone but for rounding."""
    chosen = recipe(family(name))
    preflight(chosen)
    generator = PipelineGenerator(chosen, needs=frozenset({ATTENTION, FEATURES, LATENT}))
    together, again = (generator.generate(REQUESTS) for _ in range(2))
    stock = load_pipeline(chosen.generator, "cpu")
    stock.set_progress_bar_config(disable=True)
    for k, request in enumerate(REQUESTS):
        (alone,) = generator.generate([request])
        options = generator.family.guidance_options(chosen.generator.guidance, "", 1) | dict(generator.family.call)
        random = torch.Generator().manual_seed(request.seed)
        size = {"width": chosen.generator.width, "height": chosen.generator.height}
        expected = stock(prompt=request.prompt.text, num_inference_steps=2, generator=random, **size, **options).images[
            0
        ]
        assert np.array_equal(alone.image, np.asarray(expected))
        assert np.array_equal(together[k].image, again[k].image)
        assert np.abs(together[k].image.astype(int) - alone.image.astype(int)).max() <= 1
        assert together[k].attention is not None
        assert alone.attention is not None
        for shape, maps in together[k].attention.cross.items():
            assert np.allclose(maps, alone.attention.cross[shape], atol=1e-4)
            assert np.allclose(maps.sum(0), 1, atol=1e-4)
        for block, value in together[k].features.items():
            assert torch.allclose(value.float(), alone.features[block].float(), atol=1e-2, rtol=1e-2)


def test_a_batch_whose_decoding_runs_out_of_memory_is_generated_in_parts(
    family: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sana's pipeline catches the error of its autoencoder and goes on without an image."""
    generator = PipelineGenerator(recipe(family("sana")))
    kind, sizes = type(generator.pipeline.vae), []
    decode = kind.decode

    def decoded(vae: Any, latents: torch.Tensor, **options: Any) -> Any:
        sizes.append(len(latents))
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(vae, latents, **options)

    monkeypatch.setattr(kind, "decode", decoded)
    assert len(generator.generate(REQUESTS)) == 2
    assert sizes == [2, 1, 1]


@pytest.mark.parametrize("name", ["flux-dev", "sana", "z-image"])
def test_half_precision_gives_the_librarys_images_and_finite_masks(family: Make, name: str) -> None:
    chosen = recipe(family(name), generator={"dtype": "bfloat16"})
    generator = PipelineGenerator(chosen, needs=frozenset({ATTENTION, FEATURES}))
    (made,) = generator.generate(REQUESTS[:1])
    stock = load_pipeline(chosen.generator, "cpu")
    stock.set_progress_bar_config(disable=True)
    options = generator.family.guidance_options(chosen.generator.guidance, "", 1) | dict(generator.family.call)
    size = {"width": chosen.generator.width, "height": chosen.generator.height}
    random = torch.Generator().manual_seed(REQUESTS[0].seed)
    expected = stock(prompt=PROMPTS[0].text, num_inference_steps=2, generator=random, **size, **options).images[0]
    assert np.array_equal(made.image, np.asarray(expected))
    assert made.attention is not None
    assert all(np.isfinite(maps).all() for maps in made.attention.cross.values())


def test_prompts_are_read_as_they_are_with_any_packages(family: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """PixArt-Sigma's pipeline cleans prompts by default, but only if two packages are installed."""
    module = "diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma"
    for name in ("is_bs4_available", "is_ftfy_available"):
        monkeypatch.setattr(f"{module}.{name}", lambda: True)
    monkeypatch.setattr(f"{module}.PixArtSigmaPipeline._clean_caption", lambda self, text: "")
    generator = PipelineGenerator(recipe(family("pixart-sigma")))
    (tokens,) = generator.conditions(PROMPTS).tokens
    texts = generator.pipeline.tokenizer.batch_decode(tokens.ids, skip_special_tokens=True)
    assert texts == [prompt.text for prompt in PROMPTS]
