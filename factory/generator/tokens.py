"""Finds the tokens of each class in a prompt by their text, and checks that a tokenizer knows words."""

import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from factory.config.prompts import Prompt
from factory.errors import UserError

_INCOMPLETE = "\ufffd"
"""Character at the end of a token's text if the next token contains further bytes of its last letter."""
_END_TOKEN = 16
"""Characters that an end token may have."""


@dataclass(frozen=True)
class Positions:
    """Positions among the tokens of a text: those of each class, and the first and last (exclusive) of the prompt."""

    classes: tuple[tuple[int, ...], ...]
    start: int
    end: int


def class_positions(tokenizer: Any, ids: Sequence[int], prompt: Prompt, missing_ok: bool = False) -> Positions:
    """The positions of a prompt and of its classes among token ids without padding.

    The ids are decoded, the prompt is looked up in the resulting text and the phrase of each class in the prompt. Case,
    white space and accents are ignored, because tokenizers change them. With `missing_ok` a class may lie beyond the
    last token; it has no positions then. Raises UserError if the text does not contain a class's words, or only after
    the encoder's last token, or if the tokenizer does not know them.
    """
    decoded = _Decoded(tokenizer, ids)
    text, ends = _folded_with_ends(prompt.text)
    spans = [_span(prompt, k, ends) for k in range(len(prompt.classes))]
    offset, length = _located(decoded.text, text)
    classes = []
    for phrase, (start, end) in zip(prompt.phrases, spans, strict=True):
        if start < length:
            positions = decoded.tokens(offset + start, offset + min(end, length))
        else:
            prompt_start = _by_phrase(decoded.text, text, start, end)
            positions = () if prompt_start is None else decoded.tokens(prompt_start + start, prompt_start + end)
        if not positions and not missing_ok:
            if partly_unknown(tokenizer, [phrase])[0]:
                raise UserError(
                    f"the text encoder does not know the words {phrase!r} of {prompt.text!r}; name the class by words "
                    f"that the model was trained on, or use another model."
                )
            raise UserError(
                f"the words {phrase!r} come after the first {len(ids)} tokens, which are all that the model reads of "
                f"{prompt.text!r}; shorten the prompt."
            )
        classes.append(positions)
    if not length:
        named = [position for positions in classes for position in positions]
        return Positions(tuple(classes), min(named, default=0), max(named, default=-1) + 1)
    prompt_tokens = decoded.tokens(offset, offset + length)
    return Positions(tuple(classes), prompt_tokens[0], prompt_tokens[-1] + 1)


def partly_unknown(tokenizer: Any, texts: Sequence[str]) -> list[bool]:
    """Whether the tokenizer replaces a part of a text by the token for unknown text; most have bytes instead."""
    unknown = tokenizer.unk_token_id
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
    return [unknown is not None and unknown in tokens for tokens in encoded]


def _span(prompt: Prompt, index: int, ends: Sequence[int]) -> tuple[int, int]:
    """The range of a class's phrase in the folded prompt."""
    span = prompt.spans()[index]
    if span is None:
        raise UserError(
            f"masks from attention require the words of each class in the prompt: {prompt.phrases[index]!r} (class "
            f"{prompt.classes[index]}) is not in {prompt.text!r}. Write class=words in the prompts file, or use "
            f"--masks detector."
        )
    return bisect_left(ends, span[0] + 1), bisect_left(ends, span[1] + 1)


def _located(decoded: str, text: str) -> tuple[int, int]:
    """(start of the last occurrence of the prompt in the decoded text, length of the part that it contains).

    A truncated prompt is followed only by the end token. (0, 0) if the text does not contain the prompt.
    """
    for length in range(len(text), 0, -1):
        start = decoded.rfind(text[:length])
        if start >= 0:
            complete = length == len(text)
            return (start, length) if complete or len(decoded) - start - length <= _END_TOKEN else (0, 0)
    return 0, 0


def _by_phrase(decoded: str, text: str, start: int, end: int) -> int | None:
    """The start of the prompt by the position of a phrase, if the tokenizer does not know characters of the prompt."""
    phrase = text[start:end]
    later = text.count(phrase, start)
    if decoded.count(phrase) < text.count(phrase):
        return None
    position = len(decoded)
    for _ in range(later):
        position = decoded.rfind(phrase, 0, position)
    return position - start


class _Decoded:
    """Token ids with the folded text of each prefix."""

    def __init__(self, tokenizer: Any, ids: Sequence[int]) -> None:
        self._tokenizer, self._ids = tokenizer, list(ids)
        self._lengths: dict[int, int] = {}
        self.text = self._decode(len(self._ids))

    def tokens(self, start: int, end: int) -> tuple[int, ...]:
        """The positions of the tokens that overlap a range of the text."""
        positions = range(len(self._ids))
        first = bisect_left(positions, start + 1, key=lambda k: self._length(k + 1))
        last = bisect_left(positions, end, key=lambda k: self._length(k + 1))
        while last + 1 < len(self._ids) and self._raw(last + 1).endswith(_INCOMPLETE):
            last += 1
        return tuple(range(first, min(last + 1, len(self._ids))))

    def _length(self, count: int) -> int:
        if count not in self._lengths:
            self._lengths[count] = len(self._decode(count))
        return self._lengths[count]

    def _decode(self, count: int) -> str:
        return _folded_with_ends(self._raw(count))[0]

    def _raw(self, count: int) -> str:
        """The text of the first tokens, as the tokenizer decodes it."""
        ids = self._ids[:count]
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _folded_with_ends(text: str) -> tuple[str, list[int]]:
    """The text in lower case without white space and accents, and where each of its characters ends in `text`."""
    folded, ends = [], []
    for number, character in enumerate(text, 1):
        for part in unicodedata.normalize("NFKD", character).lower():
            if not part.isspace() and not unicodedata.combining(part):
                folded.append(part)
                ends.append(number)
    return "".join(folded), ends


def spelled_out(tokenizer: Any, words: Sequence[str]) -> list[str]:
    """The words that a tokenizer spells out letter by letter; general tokenizers do so with very rare words only."""
    encoded = tokenizer(list(words), add_special_tokens=False).input_ids
    return [word for word, tokens in zip(words, encoded, strict=True) if len(tokens) > max(2, len(word) // 2)]


def check_words_known(tokenizer: Any, words: Sequence[str], model: str) -> None:
    """Raise UserError if the tokenizer spells most of the words out letter by letter.

    Such a tokenizer was trained on a few captions, and its text encoder has not seen other words. General tokenizers
    have one or two tokens for a common word.
    """
    spelled = spelled_out(tokenizer, words)
    if 2 * len(spelled) > len(words):
        raise UserError(
            f"the text encoder of {model} was trained on a few captions only: it does not know {len(spelled)} of the "
            f"{len(words)} words of the prompt style `rich`, such as {', '.join(spelled[:3])}. Use the style `simple`, "
            f"or give another --model."
        )
