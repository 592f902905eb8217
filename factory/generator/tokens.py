"""Find the tokens of each class in a prompt."""

from typing import Any

from factory.config.prompts import Prompt
from factory.errors import UserError


def class_tokens(tokenizer: Any, prompt: Prompt) -> tuple[list[list[int]], int]:
    """(positions of each class's own tokens, position of the end token); the start token is at 0.

    CLIP tokenises word by word, so counting the tokens of the text before a word gives the word's position. Raises
    UserError if the text does not contain a class's words, or only after the encoder's last token.
    """
    length = tokenizer.model_max_length

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)

    end = min(count(prompt.text) + 1, length - 1)
    positions = []
    for name, phrase, span in zip(prompt.classes, prompt.phrases, prompt.spans(), strict=True):
        if span is None:
            raise UserError(
                f"masks from attention require the words of each class in the prompt: {phrase!r} (class {name}) is not "
                f"in {prompt.text!r}. Write class=words in the prompts file, or use --masks detector."
            )
        own = [k for k in range(count(prompt.text[: span[0]]) + 1, count(prompt.text[: span[1]]) + 1) if k < end]
        if not own:
            raise UserError(
                f"the words {phrase!r} come after the first {length} tokens, which are all that the model reads of "
                f"{prompt.text!r}; shorten the prompt."
            )
        positions.append(own)
    return positions, end
