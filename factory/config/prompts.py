"""Prompts: a text, the classes it shows, and the phrase in the text that names each class."""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.config.vocabulary import ClassEntry, Vocabulary, caption
from factory.errors import UserError
from factory.files.text import read_lines

_UNSPACED = (
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Letters of Thai, Lao, Burmese, Khmer, Japanese and Chinese, which have no spaces between words."""

_FORM = '{"text": "...", "classes": ["..."]} or {"text": "...", "classes": {"class": "phrase in the text"}}'


@dataclass(frozen=True)
class Prompt:
    """`phrases[k]` is the part of `text` that names `classes[k]`; attention masks are read from its tokens."""

    text: str
    classes: tuple[str, ...]
    phrases: tuple[str, ...]

    def only(self, names: Collection[str]) -> "Prompt":
        """The same prompt, restricted to the classes in `names`."""
        kept = [pair for pair in zip(self.classes, self.phrases, strict=True) if pair[0] in names]
        return Prompt(self.text, tuple(name for name, _ in kept), tuple(phrase for _, phrase in kept))

    def spans(self) -> list[tuple[int, int] | None]:
        """The character range [start, end) of each phrase in the text; None if the phrase is absent.

        Longer phrases are matched first, so in "a hot dog and a dog" the class "dog" matches the second "dog". A phrase
        is a whole word, except where its script has no spaces, as in "一张狗的照片" ("a photograph of a dog").
        """
        found: list[tuple[int, int] | None] = [None] * len(self.phrases)
        for index in sorted(range(len(self.phrases)), key=lambda k: (-len(self.phrases[k]), k)):
            for start, end in _occurrences(self.text, self.phrases[index]):
                if all(span is None or end <= span[0] or span[1] <= start for span in found):
                    found[index] = (start, end)
                    break
        return found


def _occurrences(text: str, phrase: str) -> Iterator[tuple[int, int]]:
    """The ranges of a phrase in a text: first those between spaces or punctuation, then those in unspaced scripts."""
    word = re.escape(phrase)
    unspaced = rf"(?:(?<!\w)|(?<={_UNSPACED})|(?={_UNSPACED})){word}(?:(?!\w)|(?<={_UNSPACED})|(?={_UNSPACED}))"
    for pattern in (rf"(?<!\w){word}(?!\w)", unspaced):
        yield from (match.span() for match in re.finditer(pattern, text, re.IGNORECASE))


def has_unspaced_words(text: str) -> bool:
    """Whether a text contains letters of a script that has no spaces between words."""
    return re.search(_UNSPACED, text) is not None


def captioned(vocabulary: Vocabulary, classes: Sequence[str]) -> Prompt:
    """The standard prompt of some classes: "a photograph of a dog and a traffic light"."""
    phrases = [vocabulary.resolve(name).display for name in classes]
    return Prompt(caption(phrases), tuple(classes), tuple(phrases))


def read_prompts(path: str | Path, vocabulary: Vocabulary) -> list[Prompt]:
    """Read a prompts file; blank lines and lines starting with # are skipped.

    A line is `text <tab> class, class` or a JSON object {"text": ..., "classes": [...]}. If the text names a class by
    another phrase, write `class=phrase` (JSON: "classes": {"class": "phrase"}).
    """
    prompts = []
    for number, line in read_lines(path, "prompts file"):
        if not line.startswith("#"):
            prompts.append(_read_line(line, f"{path}, line {number}", vocabulary))
    if not prompts:
        raise UserError(f"the prompts file {path} is empty; add a line such as `a photograph of a dog<tab>dog`.")
    return prompts


def make_prompt(text: str, classes: dict[str, str], where: str, vocabulary: Vocabulary) -> Prompt:
    """Build a validated prompt; `classes` maps each class name to its phrase in the text, or to "" to search for it."""
    if not text.strip() or not classes:
        raise UserError(f"{where}: a prompt requires a text and at least one class, got {text!r} with {len(classes)}.")
    entries = [vocabulary.resolve(name, where) for name in classes]
    names = tuple(entry.name for entry in entries)
    if len(set(names)) < len(names):
        raise UserError(f"{where}: a prompt must name each class once, got {', '.join(names)}.")
    pairs = zip(entries, classes.values(), strict=True)
    phrases = tuple(phrase or _find_phrase(text, entry) for entry, phrase in pairs)
    return Prompt(text.strip(), names, phrases)


def _find_phrase(text: str, entry: ClassEntry) -> str:
    """The longest name or alias of the class that occurs in the text; its display name if none does."""
    for phrase in sorted({entry.display, entry.name, *entry.aliases}, key=lambda name: (-len(name), name)):
        if Prompt(text, (entry.name,), (phrase,)).spans()[0] is not None:
            return phrase
    return entry.display


def _read_line(line: str, where: str, vocabulary: Vocabulary) -> Prompt:
    if line.startswith("{"):
        return make_prompt(*_parse_json(line, where), where, vocabulary)
    text, tab, rest = line.partition("\t")
    if not tab:
        raise UserError(f"{where}: a line must be a text, a tab and comma-separated classes, got {line[:80]!r}.")
    parts = [part.partition("=") for part in rest.split(",") if part.strip()]
    pairs = [(name.strip(), phrase.strip(), bool(equals)) for name, equals, phrase in parts]
    bare = next((name for name, phrase, equals in pairs if equals and not phrase), None)
    if bare is not None:
        raise UserError(f"{where}: {bare}= has no phrase; write {bare}=phrase, or {bare} alone.")
    return make_prompt(text, _unique([(name, phrase) for name, phrase, _ in pairs], where), where, vocabulary)


def _parse_json(line: str, where: str) -> tuple[str, dict[str, str]]:
    """Parse a JSON line into (text, phrase of each class); raises UserError for any other structure."""
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        repeated.extend(name for index, name in enumerate(names) if name in names[:index])
        return dict(pairs)

    try:
        data = json.loads(line, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: a JSON line must be {_FORM}, got {line[:80]}.") from error
    if repeated:
        raise UserError(f"{where}: the JSON object contains the key {repeated[0]!r} twice, got {line[:80]}.")
    text, classes = data.get("text"), data.get("classes")
    pairs = list(classes.items()) if isinstance(classes, dict) else None
    if isinstance(classes, list):
        pairs = [(name, "") for name in classes]
    if (
        set(data) != {"text", "classes"}
        or not isinstance(text, str)
        or pairs is None
        or not all(isinstance(name, str) and isinstance(phrase, str) for name, phrase in pairs)
    ):
        raise UserError(f"{where}: a JSON line must be {_FORM}, got {line[:80]}.")
    return text, _unique(pairs, where)


def _unique(pairs: Sequence[tuple[str, str]], where: str) -> dict[str, str]:
    """The pairs as a mapping; raises UserError for a repeated class, whose first phrase would be lost."""
    names = [name for name, _ in pairs]
    repeated = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if repeated is not None:
        raise UserError(f"{where}: the class {repeated!r} is repeated; a prompt must name each class once.")
    return dict(pairs)
