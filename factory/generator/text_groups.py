"""Maps columns of the text states that the denoiser reads to the classes of a prompt."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from factory.config.prompts import Prompt
from factory.generator.reading import OTHER_GROUPS, TextGroups
from factory.generator.sampler import TextTokens
from factory.generator.tokens import class_positions


def text_groups(tokens: Sequence[TextTokens], prompts: Sequence[Prompt], pipeline: Any, length: int) -> TextGroups:
    """The groups of `length` text columns. A prompt with fewer classes than others has empty groups.

    Raises UserError if no text encoder reads the words of a class.
    """
    classes = max(len(prompt.classes) for prompt in prompts)
    groups = torch.zeros(len(prompts), length, classes + OTHER_GROUPS)
    text_mask = torch.zeros(len(prompts), length, dtype=torch.bool)
    for k, prompt in enumerate(prompts):
        shift = 0
        for encoder_tokens in tokens:
            for column, group, is_text in _columns(encoder_tokens, k, prompt, pipeline, classes):
                if shift + column < length:
                    groups[k, shift + column, group] = 1
                    text_mask[k, shift + column] = is_text
            shift += encoder_tokens.ids.shape[1]
        is_read = groups[k].any(0).tolist()
        missing = [name for number, name in enumerate(prompt.classes) if not is_read[number]]
        if missing:  # this call explains what is wrong
            class_positions(_tokenizer(tokens[-1], pipeline), _ids(tokens[-1], k), prompt.only(missing))
    return TextGroups(groups, text_mask)


def _columns(
    tokens: TextTokens, index: int, prompt: Prompt, pipeline: Any, classes: int
) -> Iterator[tuple[int, int, bool]]:
    """(column among the encoder's own, group, whether it is text) of each state that the denoiser reads.

    The groups are the classes and then those of `OTHER_GROUPS`.
    """
    is_text = tokens.is_text[index].tolist()
    text_positions = [position for position, kept in enumerate(is_text) if kept]
    found = class_positions(_tokenizer(tokens, pipeline), _ids(tokens, index), prompt, missing_ok=True)
    of_class = {
        text_positions[position]: number for number, positions in enumerate(found.classes) for position in positions
    }
    start, stop = (text_positions[found.start], text_positions[found.end - 1] + 1) if found.end else (0, 0)
    for position, column in enumerate(tokens.encoder.columns(is_text, pipeline)):
        if column is not None:
            other_group = classes if position < start else classes + 1 if position < stop else classes + 2
            yield column, of_class.get(position, other_group), is_text[position]


def _ids(tokens: TextTokens, index: int) -> list[int]:
    """The ids of a text without padding."""
    ids: list[int] = tokens.ids[index][tokens.is_text[index]].tolist()
    return ids


def _tokenizer(tokens: TextTokens, pipeline: Any) -> Any:
    return getattr(pipeline, tokens.encoder.tokenizer)
