"""How much of a prompt the text encoders of a model read, determined from their tokenizers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.config.prompts import Prompt
from factory.errors import UserError, one_line
from factory.generator.family import Family
from factory.generator.layout import component_class, component_names
from factory.generator.tokens import check_words_known, class_positions, partly_unknown, spelled_out


@dataclass(frozen=True)
class TextReader:
    """A tokenizer, and the number of tokens that the encoder behind it reads.

    `before` and `after` are what the pipeline writes around a prompt, if that counts towards this number.
    """

    tokenizer: Any
    max_tokens: int
    before: str = ""
    after: str = ""

    def too_long(self, texts: Sequence[str]) -> list[bool]:
        """Whether the encoder reads only the beginning of a text."""
        encoded = self._ids([self.before + text for text in texts], truncation=False)
        return [len(tokens) > self.max_tokens for tokens in encoded]

    def doubtful(self, texts: Sequence[str]) -> list[bool]:
        """Whether the encoder may not read a class of a text: the text is too long, or has unknown words."""
        pairs = zip(self.too_long(texts), partly_unknown(self.tokenizer, texts), strict=True)
        return [long or unknown for long, unknown in pairs]

    def check(self, prompt: Prompt) -> None:
        """UserError if a class has no tokens within the length that the encoder reads."""
        written = self.before + prompt.text + self.after
        (ids,) = self._ids([written], truncation=True, max_length=self.max_tokens)
        class_positions(self.tokenizer, ids, prompt)

    def _ids(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        """Token ids as the pipeline computes them; a chat template contains the special tokens."""
        special = not self.before
        ids: list[list[int]] = self.tokenizer(
            list(texts), add_special_tokens=special, verbose=False, **options
        ).input_ids
        return ids


def open_tokenizers(folder: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizers of a pipeline by component, without the processors of language models around them."""
    loaded = {
        name: _tokenizer(folder / name, component_class(index, name, str(folder))) for name in component_names(index)[1]
    }
    return {name: getattr(tokenizer, "tokenizer", tokenizer) for name, tokenizer in loaded.items()}


def readers_of(family: Family, pipeline: str, tokenizers: Mapping[str, Any]) -> list[TextReader]:
    """The text encoders that the denoiser attends to, that with the longest context first; some may be missing.

    `pipeline` is the name of its class. UserError if a chat template is missing.
    """
    readers = []
    for encoder in family.encoders:
        tokenizer = tokenizers.get(encoder.tokenizer)
        if tokenizer is not None:
            template = encoder.templates.get(pipeline)
            around = ("", "") if template is None else template(tokenizer)
            readers.append(TextReader(tokenizer, encoder.max_tokens or int(tokenizer.model_max_length), *around))
    return sorted(readers, key=lambda reader: -reader.max_tokens)


def check_read(readers: Sequence[TextReader], prompt: Prompt) -> None:
    """UserError, that of the first reader, if no text encoder reads the words of a class."""
    for name in prompt.classes:
        errors = []
        for reader in readers:
            try:
                reader.check(prompt.only([name]))
            except UserError as error:
                errors.append(error)
        if len(errors) == len(readers):
            raise errors[0]


def check_vocabulary(tokenizers: Mapping[str, Any], words: Sequence[str], model: str) -> None:
    """UserError if one of the text encoders does not know common words."""
    for tokenizer in tokenizers.values():
        check_words_known(tokenizer, words, model)


def unknown_words(tokenizers: Mapping[str, Any], common: Sequence[str], words: Sequence[str]) -> list[str]:
    """The words that a text encoder does not know; none if it knows most of the common words, as general ones do."""
    for tokenizer in tokenizers.values():
        if 2 * len(spelled_out(tokenizer, common)) > len(common):
            return spelled_out(tokenizer, words)
    return []


def _tokenizer(folder: Path, kind: str) -> Any:
    from factory.generator.weights import load_tokenizer

    try:
        return load_tokenizer(folder, kind)
    except UserError:
        raise
    except Exception as error:  # transformers and tokenizers raise many types of errors
        raise UserError(
            f"the tokenizer in {folder} cannot be read: {one_line(error)}. Download or save it again."
        ) from error
