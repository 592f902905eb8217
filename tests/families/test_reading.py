"""Attention and features of every family are read at the right tokens and noise level."""

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from factory.errors import UserError
from factory.generator.interface import ATTENTION, FEATURES, HALVES, LATENT
from factory.generator.noise import Mixture
from factory.generator.pipeline import PipelineGenerator
from factory.generator.tokens import class_positions
from tests.families.conftest import ALL, PROMPTS, REQUESTS, Make, recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and transformers about their own models


@pytest.mark.parametrize("name", ALL)
def test_the_tokens_of_each_class_are_found_in_the_familys_template(family: Make, name: str) -> None:
    generator = PipelineGenerator(recipe(family(name)), needs=frozenset({ATTENTION}))
    conditions = generator.conditions(PROMPTS)
    assert conditions.tokens
    for tokens in conditions.tokens:
        tokenizer = getattr(generator.pipeline, tokens.encoder.tokenizer)
        for k, prompt in enumerate(PROMPTS):
            ids = tokens.ids[k][tokens.is_text[k]].tolist()
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
    """Reading at the timestep of the pipeline's first step gives the denoiser the same time as the pipeline does."""
    generator = PipelineGenerator(recipe(family(name)), needs=frozenset({FEATURES}))
    pipeline, seen = generator.pipeline, []
    denoiser = getattr(pipeline, generator.family.denoiser)
    denoiser.register_forward_pre_hook(lambda *_: seen.append(float(pipeline.scheduler.timesteps[0])))
    conditions, (first,) = generator.conditions(PROMPTS), seen
    given = conditions.arguments[generator.family.time]
    arguments = generator._arguments(
        conditions, torch.zeros(2, *_latent_shape(generator)), [Mixture(1.0, 0.0, first)] * 2
    )
    time = arguments[generator.family.time]
    assert (time.shape, time.dtype) == (given.shape, given.dtype) or given.ndim == 0
    assert time.flatten().tolist() == pytest.approx(given.flatten().tolist(), rel=1e-2)


def _latent_shape(generator: PipelineGenerator) -> tuple[int, ...]:
    (generated,) = generator.__class__(generator.recipe, needs=frozenset({LATENT})).generate(REQUESTS[:1])
    assert generated.latent is not None
    return tuple(generated.latent.shape)


def test_both_halves_of_guidance_are_read_from_unets_alone(family: Make) -> None:
    with pytest.raises(UserError, match="use the module guided or paper"):
        PipelineGenerator(recipe(family("sd3")), needs=frozenset({FEATURES, HALVES}))


def test_the_blocks_of_attention_masks_can_be_chosen(family: Make) -> None:
    chosen = recipe(family("chroma"), masks={"source": "attention", "blocks": [0, 2], "noise_level": 0.5})
    generator = PipelineGenerator(chosen, needs=frozenset({ATTENTION}))
    attention = generator.generate(REQUESTS[:1])[0].attention
    assert attention is not None
    assert attention.layers == {(4, 4): 2}
