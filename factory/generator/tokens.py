"""Which tokens of a prompt stand for each class."""

from typing import Any

from factory.config.prompts import Prompt
from factory.errors import UserError


def class_tokens(tokenizer: Any, prompt: Prompt) -> tuple[list[list[int]], int]:
    """(positions of each class's own tokens, position of the end token), counted from the start token at 0.

    Words are tokenised one by one in CLIP's way, so the tokens before a word do not depend on it. UserError where a
    class has no words in the text, or only behind the encoder's last token.
    """
    length = tokenizer.model_max_length

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)

    end = min(count(prompt.text) + 1, length - 1)
    positions = []
    for name, phrase, span in zip(prompt.classes, prompt.phrases, prompt.spans(), strict=True):
        if span is None:
            raise UserError(
                f"masks from attention need the words of each class in the text: {phrase!r} (class {name}) is not in "
                f"{prompt.text!r}. Write class=words in the prompts file, or take --masks detector."
            )
        own = [k for k in range(count(prompt.text[: span[0]]) + 1, count(prompt.text[: span[1]]) + 1) if k < end]
        if not own:
            raise UserError(
                f"the words {phrase!r} come after the {length} tokens that the model reads of {prompt.text!r}."
            )
        positions.append(own)
    return positions, end
