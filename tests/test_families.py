"""Every family of the table, on tiny random weights of the real classes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from factory.config.prompts import Prompt
from factory.config.recipe import Recipe, make_recipe
from factory.config.sections import GeneratorRecipe
from factory.config.vocabulary import voc
from factory.dataset.storage import Store
from factory.errors import UserError
from factory.generation.components import load_components
from factory.generation.pin import pin_recipe
from factory.generation.preflight import preflight
from factory.generator.families import PIPELINES
from factory.generator.interface import ATTENTION, FEATURES, HALVES, LATENT, Request
from factory.generator.load import load_pipeline, pin_generator
from factory.generator.noise import mixture
from factory.generator.pipeline import PipelineGenerator
from factory.generator.tokens import class_positions
from factory.grounder.data import OracleDataset
from factory.grounder.folder import save_grounder
from factory.grounder.training import GrounderOptions, GrounderTask
from tests.support.datasets import BandDetector, make_dataset
from tests.support.oracle_datasets import SEEN
from tests.support.tiny_families import BUILDERS, SIDES, tiny_family

TRANSFORMERS = sorted(BUILDERS)
_LIKE_OTHERS = {"flux2-klein-base", "flux-schnell", "flux2", "sd", "sdxl"}
"""Variants of rows whose other variant is tested quickly, and U-Nets, whose grounders have tests of their own."""


def _rows(slow: set[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in ("sd", "sdxl", *BUILDERS)]


ALL, MOST = _rows({"flux2-klein-base"}), _rows(_LIKE_OTHERS)
PROMPTS = [
    Prompt("a photograph of a dog and a train", ("dog", "train"), ("dog", "train")),
    Prompt("a photograph of a cat", ("cat",), ("cat",)),
]
REQUESTS = [Request(prompt, 5 + k) for k, prompt in enumerate(PROMPTS)]
Make = Callable[[str], Path]

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and transformers about their own models


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The folder of a tiny pipeline by name, written once."""
    folder, made = tmp_path_factory.mktemp("families"), {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tiny_family(name, folder / name)
        return made[name]

    return make


def recipe(model: Path, **changes: Any) -> Recipe:
    side = SIDES.get(model.name, 64)
    generator = {"model": str(model), "steps": 2, "width": side, "height": side} | changes.pop("generator", {})
    data = {"n": 4, "classes": "voc", "shard_size": 4, "batch": 2, "attempts": 1, "generator": generator}
    filters = dict.fromkeys(("min_area", "max_area", "max_border", "max_overlap", "duplicate_distance", "min_contrast"))
    return pin_recipe(make_recipe(data | {"masks": {"source": "attention"}, "filters": filters} | changes))


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


@pytest.mark.parametrize("name", ALL)
def test_the_tokens_of_each_class_are_found_in_the_familys_template(family: Make, name: str) -> None:
    generator = PipelineGenerator(recipe(family(name)), needs=frozenset({ATTENTION}))
    conditions = generator.conditions(PROMPTS)
    assert conditions.tokens
    for tokens in conditions.tokens:
        tokenizer = getattr(generator.pipeline, tokens.encoder.tokenizer)
        for k, prompt in enumerate(PROMPTS):
            ids = tokens.ids[k][tokens.text[k]].tolist()
            found = class_positions(tokenizer, ids, prompt)
            for phrase, own in zip(prompt.phrases, found.classes, strict=True):
                assert tokenizer.decode([ids[position] for position in own]).strip() == phrase
            inside = tokenizer.decode(ids[found.start : found.end])
            assert "".join(inside.split()) == "".join(prompt.text.split())


class FirstKeys(TorchFunctionMode):
    """Keeps the keys of the first attention to text of a denoiser."""

    def __init__(self, reader: Any, modules: dict[str, Any]) -> None:
        super().__init__()
        self.keys: Any = None
        self.inside = False
        for module in modules.values():
            module.register_forward_pre_hook(lambda *_: setattr(self, "inside", True))
            module.register_forward_hook(lambda *_: setattr(self, "inside", False))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention and self.inside and self.keys is None:
            self.keys = args[1] if len(args) > 1 else kwargs["key"]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ALL)
def test_text_columns_are_where_the_text_states_go(family: Make, name: str) -> None:
    """By gradients: the keys that the reader takes for columns of text depend on the text states of these columns.

    In Z-Image text tokens are mixed before they meet the image, so a key depends on all of them.
    """
    generator = PipelineGenerator(recipe(family(name)), needs=frozenset({ATTENTION}))
    reader, kind = generator._reader, generator.family
    conditions = generator.conditions(PROMPTS)
    texts = generator._texts(conditions, PROMPTS)
    states = conditions.arguments[kind.text]
    given = [own.clone().requires_grad_() for own in (states if isinstance(states, list) else [states])]
    arguments = {**conditions.arguments, kind.text: given if isinstance(states, list) else given[0]}
    mode = FirstKeys(reader, reader._attention)
    with torch.enable_grad(), mode:
        reader.denoiser(**arguments)
    keys = reader.text_tokens(mode.keys) if kind.tokens != "cross" else mode.keys
    row, columns = 1, texts.groups[1, :, 0].nonzero().flatten().tolist()
    assert columns
    for column in (columns[0], columns[-1]):
        key = keys[row, :, column].square().sum()
        gradient = torch.autograd.grad(key, given, retain_graph=True, allow_unused=True)
        own = gradient[row] if isinstance(states, list) else gradient[0][row]
        touched = own.abs().sum(-1).nonzero().flatten().tolist()
        assert column in touched
        assert kind.listed or touched == [column]
    if kind.tokens != "cross":
        image = reader.image_tokens(mode.keys)
        parts = torch.autograd.grad(image.square().sum(), given, allow_unused=True)
        assert all(part is None or not part.any() for part in parts)


@pytest.mark.parametrize("name", ALL)
def test_the_denoiser_is_read_at_the_time_of_its_noise_level(family: Make, name: str) -> None:
    """The pipeline's first step has a known noise level: reading at that level gives the denoiser the same time."""
    generator = PipelineGenerator(recipe(family(name)), needs=frozenset({FEATURES}))
    pipeline, seen = generator.pipeline, []
    denoiser = getattr(pipeline, generator.family.denoiser)
    denoiser.register_forward_pre_hook(lambda *_: seen.append(float(pipeline.scheduler.timesteps[0])))
    conditions, (first,) = generator.conditions(PROMPTS), seen
    given = conditions.arguments[generator.family.time]
    arguments = generator._arguments(
        conditions, torch.zeros(2, *_latent_shape(generator)), [mixture(generator.scheduler, 0.3)] * 2
    )
    level_time = arguments[generator.family.time]
    assert (level_time.shape, level_time.dtype) == (given.shape, given.dtype) or given.ndim == 0
    clock = generator.family.clock(first, denoiser.config)
    assert float(given.flatten()[0]) == pytest.approx(clock, rel=1e-2)


def _latent_shape(generator: PipelineGenerator) -> tuple[int, ...]:
    (generated,) = generator.__class__(generator.recipe, needs=frozenset({LATENT})).generate(REQUESTS[:1])
    assert generated.latent is not None
    return tuple(generated.latent.shape)


@pytest.mark.parametrize("name", MOST)
def test_oracle_training_and_generation_with_grounders(family: Make, name: str, tmp_path: Path) -> None:
    """`guided` and `paper` are trained on an oracle dataset and make the masks of a new one."""
    oracle = recipe(
        family(name), masks={"source": "detector"}, oracle={"split": "1", "seen": list(SEEN)}, objects={1: 0.5, 2: 0.5}
    )
    make_dataset(oracle, tmp_path / "oracle", BandDetector(voc().names))
    for module in ("guided", "paper"):
        task = GrounderTask([OracleDataset(Store(str(tmp_path / "oracle")))], GrounderOptions(module), "cpu", 1)
        assert task.backbone.transformer == (name in TRANSFORMERS)
        loss = task.loss(0, 2, 0)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in task.model.parameters())
        save_grounder(task.model, task.config, {}, tmp_path / module)
        chosen = recipe(family(name), masks={"source": str(tmp_path / module)})
        assert chosen.masks.noise_level == oracle.masks.noise_level
        parts = load_components(chosen)
        assert len(parts.grounder.ground(parts.generator.generate(REQUESTS), PROMPTS)) == 2


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


@pytest.mark.parametrize(
    ("name", "steps", "guidance"),
    [("flux-dev", 28, 3.5), ("flux-schnell", 4, 0.0), ("flux2-klein", 4, 1.0), ("sana", 20, 4.5), ("z-image", 50, 5.0)],
)
def test_steps_and_guidance_are_those_of_the_model(family: Make, name: str, steps: int, guidance: float) -> None:
    pinned = pin_generator(GeneratorRecipe(model=str(family(name))))
    assert (pinned.steps, pinned.guidance, pinned.solver) == (steps, guidance, "model")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("flux-dev", {"generator": {"negative": "blurred"}}, "takes no negative prompt"),
        ("flux-dev", {"generator": {"solver": "ddim"}}, "is sampled by its own FlowMatchEulerDiscreteScheduler"),
        ("sd3", {"generator": {"width": 72}}, "must be multiples of 16, the pixels per image token"),
        ("sd3", {"masks": {"source": "attention", "blocks": [0, 3]}}, "contains 3, but .* has the blocks 0 to 2"),
        ("sd3", {"masks": {"source": "attention", "levels": [1]}}, "masks.levels is for U-Nets"),
    ],
)
def test_settings_that_a_family_does_not_have_are_refused(
    family: Make, name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        preflight(recipe(family(name), **changes))


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


def test_both_halves_of_guidance_are_read_from_unets_alone(family: Make) -> None:
    with pytest.raises(UserError, match="use the module guided or paper"):
        PipelineGenerator(recipe(family("sd3")), needs=frozenset({FEATURES, HALVES}))


def test_the_blocks_of_attention_masks_can_be_chosen(family: Make) -> None:
    chosen = recipe(family("chroma"), masks={"source": "attention", "blocks": [0, 2], "noise_level": 0.5})
    generator = PipelineGenerator(chosen, needs=frozenset({ATTENTION}))
    attention = generator.generate(REQUESTS[:1])[0].attention
    assert attention is not None
    assert attention.layers == {(4, 4): 2}


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


def test_every_pipeline_of_the_table_exists_in_diffusers() -> None:
    import diffusers

    for name, kind in PIPELINES.items():
        assert hasattr(diffusers, name)
        assert all(hasattr(diffusers, denoiser) for denoiser in kind.denoiser_classes)
