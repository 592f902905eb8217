"""The checks of prompts count tokens as the pipelines of diffusers do, chat templates included."""

from bisect import bisect_left
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline, SanaPipeline, ZImagePipeline

from factory.errors import UserError
from factory.generator.families import PIPELINES
from factory.generator.text_reader import TextReader, readers_of
from tests.support.tiny_text_encoders import gemma_tokenizer, qwen_tokenizer


class _ReadError(Exception):
    """Carries the token ids that a text encoder was called with."""


class _Encoder(torch.nn.Module):
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> None:
        raise _ReadError(input_ids[0][attention_mask[0].bool()].tolist())


def _klein(parts: Any, text: str) -> Any:
    return Flux2KleinPipeline._get_qwen3_prompt_embeds(parts.text_encoder, parts.tokenizer, text)


def _dev(parts: Any, text: str) -> Any:
    return Flux2Pipeline._get_mistral_3_small_prompt_embeds(parts.text_encoder, parts.tokenizer, text)


def _z_image(parts: Any, text: str) -> Any:
    return ZImagePipeline._encode_prompt(parts, text, "cpu")


def _sana(parts: Any, text: str) -> Any:
    parts._text_preprocessing = lambda prompt, clean_caption: SanaPipeline._text_preprocessing(parts, prompt)
    return SanaPipeline._get_gemma_prompt_embeds(
        parts, text, "cpu", torch.float32, complex_human_instruction=["list the things. ", "the prompt: "]
    )


_PIPELINES = {
    "Flux2KleinPipeline": (_klein, qwen_tokenizer),
    "Flux2Pipeline": (_dev, qwen_tokenizer),
    "ZImagePipeline": (_z_image, qwen_tokenizer),
    "SanaPipeline": (_sana, gemma_tokenizer),
}


def _read(encode: Callable[[Any, str], Any], tokenizer: Any, text: str) -> str:
    """What of a text the pipeline gives to its text encoder."""
    parts = SimpleNamespace(tokenizer=tokenizer, text_encoder=_Encoder())
    try:
        encode(parts, text)
    except _ReadError as read:
        return str(tokenizer.decode(read.args[0]))
    raise AssertionError("the text encoder was not called")


@pytest.mark.parametrize("pipeline", _PIPELINES)
def test_a_prompt_is_too_long_if_the_pipeline_cuts_it(pipeline: str) -> None:
    """The template of FLUX.2 and Z-Image was not counted, so prompts near the limit lost their end silently."""
    encode, tokenizer = _PIPELINES[pipeline][0], _PIPELINES[pipeline][1]()
    (reader,) = readers_of(PIPELINES[pipeline], pipeline, {"tokenizer": tokenizer})

    def text(length: int) -> str:
        return "a photograph of" + " a cat" * length + " and a zebra"

    fits = bisect_left(range(600), True, key=lambda length: reader.too_long([text(length)])[0]) - 1
    assert fits > 20
    assert "zebra" in _read(encode, tokenizer, text(fits))
    assert "zebra" not in _read(encode, tokenizer, text(fits + 1))


def test_a_tokenizer_without_a_chat_template_is_rejected() -> None:
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"the chat template of the tokenizer in .* cannot be used"):
        readers_of(PIPELINES["ZImagePipeline"], "ZImagePipeline", {"tokenizer": tokenizer})
    assert readers_of(PIPELINES["QwenImagePipeline"], "QwenImagePipeline", {"tokenizer": tokenizer}) == [
        TextReader(tokenizer, 512)
    ]
