"""Find the tokens of each class in a prompt, and check whether a tokenizer knows words at all."""

from collections.abc import Sequence
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


def check_words_known(tokenizer: Any, words: Sequence[str], model: str) -> None:
    """Raise UserError if the tokenizer spells most of the words out letter by letter.

    Such a tokenizer was made for a few captions, and its text encoder has never seen other words. General tokenizers
    have one or two tokens for a common word.
    """
    encoded = tokenizer(list(words), add_special_tokens=False).input_ids
    spelled = [word for word, tokens in zip(words, encoded, strict=True) if len(tokens) > max(2, len(word) // 2)]
    if 2 * len(spelled) > len(words):
        raise UserError(
            f"the text encoder of {model} was trained on a few captions only: it does not know {len(spelled)} of the "
            f"{len(words)} words of the prompt style `rich`, such as {', '.join(spelled[:3])}. Use the style `simple`, "
            f"or give another --model."
        )
