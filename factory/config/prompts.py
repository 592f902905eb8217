"""Prompts: a text, the classes that it should make true, and the words in the text that stand for each class."""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.config.vocabulary import ClassEntry, Vocabulary, caption
from factory.errors import UserError
from factory.files.text import read_lines

_FORM = '{"text": "...", "classes": ["..."]} or {"text": "...", "classes": {"class": "its words in the text"}}'


@dataclass(frozen=True)
class Prompt:
    """`phrases[k]` are the words of `text` that stand for `classes[k]`; a mask from attention reads their tokens."""

    text: str
    classes: tuple[str, ...]
    phrases: tuple[str, ...]

    def only(self, names: Collection[str]) -> "Prompt":
        """The same text with those of its classes that are among `names`."""
        kept = [pair for pair in zip(self.classes, self.phrases, strict=True) if pair[0] in names]
        return Prompt(self.text, tuple(name for name, _ in kept), tuple(phrase for _, phrase in kept))

    def spans(self) -> list[tuple[int, int] | None]:
        """Where each phrase is in the text, [start, end) in characters; None where it is not.

        Longer phrases choose first, so that in "a hot dog and a dog" the class dog gets the second one.
        """
        found: list[tuple[int, int] | None] = [None] * len(self.phrases)
        for place in sorted(range(len(self.phrases)), key=lambda k: (-len(self.phrases[k]), k)):
            for match in re.finditer(rf"(?<!\w){re.escape(self.phrases[place])}(?!\w)", self.text, re.IGNORECASE):
                start, end = match.span()
                if all(span is None or end <= span[0] or span[1] <= start for span in found):
                    found[place] = (start, end)
                    break
        return found


def captioned(vocabulary: Vocabulary, classes: Sequence[str]) -> Prompt:
    """The standard prompt for some classes: "a photograph of a dog and a traffic light"."""
    words = [vocabulary.resolve(name).display for name in classes]
    return Prompt(caption(words), tuple(classes), tuple(words))


def read_prompts(path: str | Path, vocabulary: Vocabulary) -> list[Prompt]:
    """Read a prompts file; blank lines and lines that begin with # are passed over.

    A line is `text <tab> class, class` or a JSON object {"text": ..., "classes": [...]}. Where the text names a class
    by another word, write `class=word` (JSON: "classes": {"class": "word"}).
    """
    prompts = []
    for number, line in read_lines(path, "prompts file"):
        if not line.startswith("#"):
            prompts.append(_read_line(line, f"{path}, line {number}", vocabulary))
    if not prompts:
        raise UserError(f"the prompts file {path} holds no prompt; give a line like `a photograph of a dog<tab>dog`.")
    return prompts


def make_prompt(text: str, classes: dict[str, str], where: str, vocabulary: Vocabulary) -> Prompt:
    """A checked prompt; `classes` maps each class name to its words in the text ("" for its own name)."""
    if not text.strip() or not classes:
        raise UserError(f"{where}: a prompt has a text and a class or more, got {text!r} with {len(classes)}.")
    entries = [vocabulary.resolve(name) for name in classes]
    names = tuple(entry.name for entry in entries)
    if len(set(names)) < len(names):
        raise UserError(f"{where}: a prompt names a class once, got {', '.join(names)}.")
    phrases = tuple(words or _found(text, entry) for entry, words in zip(entries, classes.values(), strict=True))
    return Prompt(text.strip(), names, phrases)


def _found(text: str, entry: ClassEntry) -> str:
    """The longest of the class's names and aliases that stands in the text; its display name where none does."""
    for words in sorted({entry.display, entry.name, *entry.aliases}, key=lambda known: (-len(known), known)):
        if Prompt(text, (entry.name,), (words,)).spans()[0] is not None:
            return words
    return entry.display


def _read_line(line: str, where: str, vocabulary: Vocabulary) -> Prompt:
    if line.startswith("{"):
        return make_prompt(*_of_json(line, where), where, vocabulary)
    text, tab, rest = line.partition("\t")
    if not tab:
        raise UserError(f"{where}: a line is a text, a tab and its classes separated by commas, got {line[:80]!r}.")
    parts = [part.partition("=") for part in rest.split(",") if part.strip()]
    pairs = [(name.strip(), words.strip(), bool(equals)) for name, equals, words in parts]
    bare = next((name for name, words, equals in pairs if equals and not words), None)
    if bare is not None:
        raise UserError(f"{where}: {bare}= names no word of the text; write {bare}=word, or {bare} alone.")
    return make_prompt(text, _once([(name, words) for name, words, _ in pairs], where), where, vocabulary)


def _of_json(line: str, where: str) -> tuple[str, dict[str, str]]:
    """(text, the words of each class) of a JSON line; UserError where it is not exactly of that form."""
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice.extend(name for place, name in enumerate(names) if name in names[:place])
        return dict(pairs)

    try:
        row = json.loads(line, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: a JSON line is {_FORM}, got {line[:80]}.") from error
    if twice:
        raise UserError(f"{where}: {twice[0]!r} comes twice in one JSON object; give it once, got {line[:80]}.")
    text, classes = row.get("text"), row.get("classes")
    pairs = list(classes.items()) if isinstance(classes, dict) else None
    if isinstance(classes, list):
        pairs = [(name, "") for name in classes]
    if (
        set(row) != {"text", "classes"}
        or not isinstance(text, str)
        or pairs is None
        or not all(isinstance(name, str) and isinstance(words, str) for name, words in pairs)
    ):
        raise UserError(f"{where}: a JSON line is {_FORM}, got {line[:80]}.")
    return text, _once(pairs, where)


def _once(pairs: Sequence[tuple[str, str]], where: str) -> dict[str, str]:
    """The pairs as a mapping; UserError for a class that comes twice, for its first words would be lost."""
    names = [name for name, _ in pairs]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise UserError(f"{where}: the class {twice!r} comes twice; a prompt names a class once, with one phrase.")
    return dict(pairs)
